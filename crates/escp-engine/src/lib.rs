//! The data plane of escp.
