//! What a store's disk has room for.

/// What clients may have written. Aborts, commits and repairs always go on.
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
