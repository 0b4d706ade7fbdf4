//! Keeps `src/gen/` equal to what the vendored `.proto` files give.

use std::{fs, path::Path};

/// The files that a client of etcd can reach; what they import comes along.
const ROOTS: [&str; 3] = [
    "etcd/api/etcdserverpb/rpc.proto",
    "etcd/server/etcdserver/api/v3lock/v3lockpb/v3lock.proto",
    "etcd/server/etcdserver/api/v3election/v3electionpb/v3election.proto",
];

/// Packages that only carry options for other generators, with no type that the API uses.
const OPTION_PACKAGES: [&str; 4] =
    ["google.api.rs", "google.protobuf.rs", "versionpb.rs", "grpc.gateway.protoc_gen_openapiv2.options.rs"];

/// The descriptors with the options that say where etcd's gateway serves an RPC, which the types of prost do not keep.
fn with_options(root: &Path) -> Vec<u8> {
    let mut compiler = protox::Compiler::new([root.join("etcd")]).expect("the vendored .proto files are there");
    compiler.include_imports(true);
    compiler.open_files(ROOTS).expect("the vendored .proto files compile");
    compiler.encode_file_descriptor_set()
}

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(ROOTS, [root.join("etcd")]).expect("the vendored .proto files compile");
    let out = tempfile::tempdir().expect("a temporary folder can be made");
    tonic_prost_build::configure()
        .bytes(".")
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .expect("the generator accepts etcd's descriptors");
    fs::write(out.path().join("descriptors.bin"), with_options(root)).expect("the descriptors can be written");

    let committed = root.join("src/gen");
    let update = std::env::var_os("UPDATE_GENERATED").is_some();
    for entry in fs::read_dir(out.path()).expect("the output folder can be read") {
        let entry = entry.expect("the output folder can be read");
        let name = entry.file_name().into_string().expect("generated names are ASCII");
        if OPTION_PACKAGES.contains(&name.as_str()) {
            continue;
        }
        let fresh = fs::read(entry.path()).expect("a generated file can be read");
        let target = committed.join(&name);
        if update {
            fs::create_dir_all(&committed).expect("src/gen can be made");
            fs::write(&target, &fresh).expect("src/gen can be written");
        } else {
            let kept = fs::read(&target).unwrap_or_default();
            assert!(
                kept == fresh,
                "proto/src/gen/{name} is stale; run UPDATE_GENERATED=1 cargo test -p etcd-proxy-proto"
            );
        }
    }
}
