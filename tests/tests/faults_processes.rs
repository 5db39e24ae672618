//! What is spoken to a daemon by somebody else than a session's agents. Killed and stopped processes are in
//! `kills.rs`.
