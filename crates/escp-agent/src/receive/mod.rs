//! The receiving half: where things go, and the conversation that puts them there.

mod create;
mod crew;
mod directory;
mod entries;
mod offers;
mod publish;
mod session;
mod space;
mod target;
mod temporary;

pub use session::receive_files;
pub(crate) use target::{IN_PARTS, MAX_TAKEN};
pub use target::{TakenNames, Target};
