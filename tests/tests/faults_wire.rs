//! What the network can do to a session: altered, repeated, cut and foreign bytes, through a proxy that knows
//! where records begin.
