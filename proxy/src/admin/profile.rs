//! `/debug/pprof/`: where the processor's time goes, in the format of Go's pprof tool.
//!
//! Of Go's profiles only that of the processor has its like here. There is no heap profile, since the allocator's
//! costs time at every allocation and so is not built in, and there are no goroutines.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use axum::body::Body;
use http::{Response, StatusCode, header::CONTENT_DISPOSITION};

use super::{query::Query, text, with_type};

mod format;

const DEFAULT_SECONDS: u64 = 30;
/// A forgotten profile must not slow the proxy down for long.
const MAX_SECONDS: u64 = 300;
/// Go's rate, so that profiles of both can be compared.
const SAMPLES_PER_SECOND: i32 = 100;

const INDEX: &str = "\
profile?seconds=30  where the processor's time goes, without system calls, for `go tool pprof`
cmdline             the arguments of this process, with zeros between

There are no heap, goroutine, block, mutex, threadcreate and trace profiles: this is no Go program, and the allocator
is built without its profiler.
";

pub async fn answer(path: &str, query: &Query) -> Response<Body> {
    match path.strip_prefix("/debug/pprof").unwrap_or(path) {
        "" | "/" => text(StatusCode::OK, INDEX),
        "/profile" => profile(query).await,
        "/cmdline" => text(StatusCode::OK, std::fs::read("/proc/self/cmdline").unwrap_or_default()),
        _ => text(StatusCode::NOT_FOUND, format!("there is no such profile, only these:\n{INDEX}")),
    }
}

async fn profile(query: &Query) -> Response<Body> {
    let wanted = query.first("seconds").map_or(Ok(DEFAULT_SECONDS), str::parse);
    let Some(seconds) = wanted.ok().filter(|seconds| (1..=MAX_SECONDS).contains(seconds)) else {
        let problem = format!("seconds must be a whole number from 1 to {MAX_SECONDS}\n");
        return text(StatusCode::BAD_REQUEST, problem);
    };
    let Some(turn) = Turn::take() else {
        return text(StatusCode::CONFLICT, "a profile is being taken already; try again when it is done\n");
    };
    match sample(Duration::from_secs(seconds), turn).await {
        Ok(profile) => {
            let mut response = with_type(StatusCode::OK, "application/octet-stream", profile);
            let name = http::HeaderValue::from_static("attachment; filename=\"profile\"");
            response.headers_mut().insert(CONTENT_DISPOSITION, name);
            response
        }
        Err(problem) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot take a profile: {problem}\n")),
    }
}

/// The profiler is one for the whole process.
struct Turn;

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Turn {
    fn take() -> Option<Self> {
        (!TAKEN.swap(true, Ordering::AcqRel)).then_some(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

/// If the asker goes away this is dropped, and the sampling ends with it.
async fn sample(duration: Duration, turn: Turn) -> Result<Vec<u8>, String> {
    let builder = pprof::ProfilerGuardBuilder::default()
        .frequency(SAMPLES_PER_SECOND)
        // A sample that falls into these could wait for a lock that it holds itself. They make the system calls too, so
        // the time that the kernel takes for us is not in the profile.
        .blocklist(&["libc", "libgcc", "pthread", "vdso"]);
    let guard = builder.build().map_err(|error| error.to_string())?;
    tokio::time::sleep(duration).await;
    // Looking up the names takes a while, and nobody's call shall wait for it.
    let encoded = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let report = guard.report().build().map_err(|error| error.to_string())?;
        Ok(format::encode(&report))
    });
    encoded.await.unwrap_or_else(|error| Err(error.to_string()))
}
