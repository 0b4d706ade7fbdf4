//! Why a command line is not obeyed, as it is printed.

use std::fmt;

/// Why the command line cannot be obeyed: to be printed to stderr as it is, before an exit with `Refusal::EXIT_CODE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    /// etcd exits with 1 for everything; service units and scripts know no other code of its proxy.
    pub const EXIT_CODE: i32 = 1;

    pub fn new(message: impl Into<String>) -> Self {
        let mut message = message.into();
        if !message.ends_with('\n') {
            message.push('\n');
        }
        Refusal(message)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}
