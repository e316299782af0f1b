//! What a store's disk has room for.

/// What clients may have written. Aborts and commits always go on; repairs do while they take no more than
/// they give back, and on a disk with hardly anything free none does that brings a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Room {
    /// Everything.
    #[default]
    All,
    /// What leaves records absent, as trims do.
    Freeing,
    /// Nothing.
    Nothing,
}
