//! Secret bytes: wiped when dropped, silent in `Debug`, and read only through `expose`.

/// Defines a newtype over 32 secret bytes. It has no `Serialize`, so that a secret enters a
/// message or a log only where somebody wrote `expose` for all to see.
macro_rules! secret_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Takes 32 secret bytes. The caller wipes its own copy.
            pub const fn new(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The secret bytes. Every use of this is a place to review.
            pub const fn expose(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

pub(crate) use secret_bytes;
