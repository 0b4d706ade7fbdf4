//! The answer to a call whose request is still being written, read bit by bit: its bytes, and then how it ended.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;

use super::{Answer, Body};
use crate::rules::status::{self, Status};

pub struct Incoming(State);

enum State {
    Awaited(BoxFuture<'static, Result<Answer, Status>>),
    Data(Body),
    Trailers(Body),
    Over,
}

/// What comes next of an answer.
pub enum Heard {
    Data(Bytes),
    /// etcd ended it with this status.
    Ended(Status),
    /// It broke off.
    Broken(Status),
}

impl Incoming {
    pub fn new(answer: impl Future<Output = Result<Answer, Status>> + Send + 'static) -> Self {
        Self(State::Awaited(Box::pin(answer)))
    }

    /// The next of the answer. It may be given up and asked for again without a loss.
    pub async fn next(&mut self) -> Heard {
        loop {
            match &mut self.0 {
                State::Awaited(answer) => match answer.await {
                    Ok(answer) if answer.code().is_some() => return self.end(&answer.headers),
                    Ok(answer) => self.0 = State::Data(answer.body),
                    Err(status) => return self.end_broken(status),
                },
                State::Data(body) => match body.data().await {
                    Some(Ok(data)) => return Heard::Data(data),
                    Some(Err(status)) => return self.end_broken(status),
                    None => self.await_trailers(),
                },
                State::Trailers(body) => {
                    return match body.trailers().await {
                        Ok(Some(trailers)) => self.end(&trailers),
                        Ok(None) => self.end_broken(status::broken("EOF")),
                        Err(status) => self.end_broken(status),
                    };
                }
                State::Over => return Heard::Broken(status::broken("EOF")),
            }
        }
    }

    fn await_trailers(&mut self) {
        self.0 = match std::mem::replace(&mut self.0, State::Over) {
            State::Data(body) => State::Trailers(body),
            other => other,
        };
    }

    fn end(&mut self, trailers: &HeaderMap) -> Heard {
        self.0 = State::Over;
        match status::of_trailers(trailers) {
            // It was not etcd that said it.
            Some(status) if status.message().starts_with(status::NOT_GRPC_ANSWER) => Heard::Broken(status),
            Some(status) => Heard::Ended(status),
            None => Heard::Ended(status::broken("EOF")),
        }
    }

    fn end_broken(&mut self, status: Status) -> Heard {
        self.0 = State::Over;
        Heard::Broken(status)
    }
}
