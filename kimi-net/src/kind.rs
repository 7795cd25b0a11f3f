//! Kinds of frames, by their numbers on the wire.

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// The kind of a frame: a `u16` in its prefix.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $name = $number,)* }

        impl Kind {
            /// Every kind, in the order of their numbers.
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            /// The kind of this number, if this version has one.
            pub fn from_number(number: u16) -> Option<Kind> {
                match number { $($number => Some(Kind::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Coordinator to worker, first: who I am.
    Hello = 1,
    /// Worker to coordinator: who I am, and the version we speak. A refusal is a fatal `Error` instead.
    Welcome = 2,
    /// Coordinator to worker: load these layers.
    Assign = 3,
    /// Worker to coordinator: how far the loading is.
    LoadProgress = 4,
    /// Worker to coordinator: the layers are loaded.
    Ready = 5,
    /// Coordinator to worker: compute a step. The payload is its input.
    Forward = 6,
    /// Worker to coordinator: a step's output, as payload.
    Result = 7,
    /// Coordinator to worker: sequences are running, or none is.
    Activity = 8,
    /// Either way: are you there?
    Ping = 9,
    /// Either way: the same numbers back.
    Pong = 10,
    /// Either way: something failed.
    Error = 11,
    /// Either way: no more from me.
    Goodbye = 12,
    /// Observer to worker: what are you, and what do you hold?
    Look = 13,
    /// Worker to observer: the answer to its oldest `Look`.
    Status = 14,
    /// Observer to worker: a range of a part of a model's files.
    Fetch = 15,
    /// Worker to observer: the answer to its oldest `Fetch`, as payload.
    Piece = 16,
}

impl Kind {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// Whether a frame of this kind may have a payload.
    pub fn carries_payload(self) -> bool {
        matches!(self, Kind::Forward | Kind::Result | Kind::Piece)
    }
}
