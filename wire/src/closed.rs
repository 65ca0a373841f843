//! Closed sets of values: a number on the wire, a word or a sentence for people.

/// Declares an enum with its codes and its words: `as_str`, `Display`, `ALL` and `u8` both ways.
///
/// The literal after the name is what the set is called in [`WireError::Value`](crate::WireError).
macro_rules! coded {
    ($(#[$meta:meta])* $name:ident $what:literal {
        $($(#[$variant_meta:meta])* $variant:ident = $code:literal => $word:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_meta])* $variant = $code,)+
        }

        impl $name {
            /// Every value, by rising code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The words that stand for this value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.pad(self.as_str())
            }
        }

        impl From<$name> for u8 {
            fn from(value: $name) -> Self {
                match value {
                    $($name::$variant => $code,)+
                }
            }
        }

        impl TryFrom<u8> for $name {
            type Error = $crate::WireError;

            fn try_from(code: u8) -> Result<Self, Self::Error> {
                match code {
                    $($code => Ok(Self::$variant),)+
                    _ => Err($crate::WireError::Value { field: $what }),
                }
            }
        }
    };
}

/// As [`coded`], for sets whose words are also read: adds `FromStr`.
macro_rules! worded {
    ($(#[$meta:meta])* $name:ident $what:literal {
        $($(#[$variant_meta:meta])* $variant:ident = $code:literal => $word:literal,)+
    }) => {
        $crate::closed::coded! {
            $(#[$meta])* $name $what {
                $($(#[$variant_meta])* $variant = $code => $word,)+
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::WireError;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::WireError::Value { field: $what }),
                }
            }
        }
    };
}

pub(crate) use {coded, worded};
