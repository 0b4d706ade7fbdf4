//! Starts, pauses, kills and restarts the real parts that the end-to-end tests run against.
