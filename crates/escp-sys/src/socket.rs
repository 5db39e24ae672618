//! TCP sockets of the data plane.
