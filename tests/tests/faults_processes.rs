//! What happens when a part of a session dies, is told to stop, or is spoken to by somebody else.
