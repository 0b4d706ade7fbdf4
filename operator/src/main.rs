//! The operator's command line: what to do, and the exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Deploys etcd-proxy on Kubernetes from EtcdProxy objects.
#[derive(Parser)]
#[command(name = "etcd-proxy-operator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the custom resource definitions, for kubectl apply
    Crd,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Crd => print!("{}", etcd_proxy_operator::api::definitions_yaml()),
    }
    ExitCode::SUCCESS
}
