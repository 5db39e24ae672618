//! An escp engine over a Unix socket, both ends.
