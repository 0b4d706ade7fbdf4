//! What each flag is, as far as reading a command line goes.

use std::{any::TypeId, path::PathBuf};

use clap::Arg;

use super::{
    environment::{ENV_PREFIX, env_name},
    nearest::nearest,
};

/// The flags of one command, or of several.
pub(super) struct Table {
    commands: Vec<clap::Command>,
}

impl Table {
    pub(super) fn of(commands: impl IntoIterator<Item = clap::Command>) -> Self {
        let built = |mut command: clap::Command| {
            command.build();
            command
        };
        Table { commands: commands.into_iter().map(built).collect() }
    }

    pub(super) fn flags(&self) -> impl Iterator<Item = &Arg> {
        self.commands.iter().flat_map(clap::Command::get_arguments)
    }

    pub(super) fn find(&self, name: &str) -> Option<&Arg> {
        self.flags().find(|flag| flag.get_long() == Some(name))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.flags().filter_map(Arg::get_long)
    }

    /// A variable that is one or two letters away from one of ours is a mistake that would otherwise stay unseen.
    ///
    /// Kubernetes gives every Pod `ETCD_PROXY_SERVICE_HOST`, `ETCD_PROXY_PORT` and their like when a Service is named
    /// etcd-proxy: these are nobody's mistake.
    pub(super) fn misspelt_variable(&self, name: &str) -> Option<String> {
        let flag = name.strip_prefix(ENV_PREFIX)?.to_ascii_lowercase().replace('_', "-");
        if self.find(&flag).is_some() || flag.contains("port") || flag.contains("service") {
            return None;
        }
        let meant = env_name(nearest(&flag, self.names())?);
        Some(format!("the environment variable {name} is not used; did you mean {meant}?"))
    }
}

/// The type that help shows for a flag, which is pflag's name of it.
pub(super) fn kind(flag: &Arg) -> &str {
    flag.get_value_names().and_then(|names| names.first()).map_or("string", |name| name.as_str())
}

/// Whether a value may be any bytes, as Go's strings may: paths and the namespace.
pub(super) fn takes_any_bytes(flag: &Arg) -> bool {
    let of = flag.get_value_parser().type_id();
    of == TypeId::of::<Vec<u8>>() || of == TypeId::of::<PathBuf>() || of == TypeId::of::<Option<PathBuf>>()
}
