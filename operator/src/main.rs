//! The operator's command line: what to do, and the exit code.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use etcd_proxy_operator::{api, app, inject, plan::Settings, plugin, verify};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Deploys etcd-proxy on Kubernetes from EtcdProxy objects.
#[derive(Parser)]
#[command(name = "etcd-proxy-operator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look after the EtcdProxies of a cluster
    Run(Box<app::Flags>),
    /// What this program does under the name kubectl-etcdproxy, by which kubectl takes it for a plugin
    Kubectl(plugin::Arguments),
    /// Print the custom resource definitions, for kubectl apply
    Crd,
    /// Put the sidecar into the pods that ask for it by the label etcdproxy.dev/inject; needs no cluster
    Inject {
        /// Files with pods, or what makes pods, and the EtcdProxies that they name; - is stdin
        #[arg(short, long = "filename", required = true)]
        filename: Vec<PathBuf>,
        /// Image of the proxy where the EtcdProxy does not name one
        #[arg(long, env = "ETCD_PROXY_OPERATOR_IMAGE")]
        image: String,
    },
    /// Put, get and watch through a proxy, as an application that binds to it; what `helm test` does
    Verify(verify::Flags),
}

fn main() -> ExitCode {
    let name = std::env::args_os().next().map(PathBuf::from);
    let name = name.as_deref().and_then(Path::file_name);
    if name.is_some_and(|name| name == plugin::NAME) {
        return plugin(plugin::Arguments::parse());
    }
    match Arguments::parse().command {
        Command::Run(flags) => run(*flags),
        Command::Kubectl(arguments) => plugin(arguments),
        Command::Crd => {
            print!("{}", api::definitions_yaml());
            ExitCode::SUCCESS
        }
        Command::Verify(flags) => check(flags),
        Command::Inject { filename, image } => match inject(&filename, image) {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn inject(files: &[PathBuf], image: String) -> Result<String, String> {
    let mut documents = inject::read_files(files)?;
    let injected = inject::inject(&mut documents, &Settings::with_image(image))?;
    eprintln!("injected into {injected} of {} objects", documents.len());
    Ok(inject::write(&documents))
}

fn check(flags: verify::Flags) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(verify::run(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn plugin(arguments: plugin::Arguments) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(plugin::run(arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: app::Flags) -> ExitCode {
    if let Err(error) = flags.lease.check() {
        eprintln!("{error}");
        return ExitCode::from(64);
    }
    let filter = match EnvFilter::try_new(&flags.log_level) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("invalid --log-level {:?}: {error}", flags.log_level);
            return ExitCode::from(64);
        }
    };
    tracing_subscriber::registry().with(fmt::layer().with_writer(std::io::stderr)).with(filter).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(app::run(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
