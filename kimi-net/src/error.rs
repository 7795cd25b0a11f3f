//! Everything that can go wrong on a link, split by whose fault it is, and its one mapping to wire codes.

use std::{io, time::Duration};

use crate::{
    frame::FrameError,
    key::ClusterId,
    message::{ErrorCode, ErrorReport, Role},
    protocol::error::ProtocolError,
};

/// Why a link ended, or why an operation on it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The peer's bytes are not an acceptable frame. Ends the link.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer broke the protocol (ends the link), or the caller was about to (does not).
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The peer ended the link and said why.
    #[error("the peer ended the link: {} ({:?})", .0.message, .0.code)]
    Peer(ErrorReport),
    /// The peer could not do what it was asked to. The link goes on.
    #[error("the peer could not do it: {} ({:?})", .0.message, .0.code)]
    Failed(ErrorReport),
    /// The peer said goodbye.
    #[error("the peer left: {reason}")]
    PeerLeft {
        /// The peer's words.
        reason: String,
    },
    /// This side said goodbye.
    #[error("the link is closed")]
    Closed,
    /// The handshake was not over in time.
    #[error("no complete handshake within {after:?}; is the other end a kimi of the other role?")]
    HandshakeTimeout {
        /// The limit.
        after: Duration,
    },
    /// Nothing was received for too long.
    #[error("nothing was received for {after:?}, not even an answer to a ping; the peer is lost")]
    Silent {
        /// The limit.
        after: Duration,
    },
    /// A frame was begun and not finished in time.
    #[error("a frame was not complete after {after:?}")]
    FrameTimeout {
        /// The limit.
        after: Duration,
    },
    /// The stream ended with no goodbye.
    #[error("the connection was lost {at}")]
    Lost {
        /// Where in a frame.
        at: String,
    },
    /// The operating system's word on the socket.
    #[error("{context}: {detail}")]
    Io {
        /// What was being done.
        context: String,
        /// Kind of error.
        kind: io::ErrorKind,
        /// The error's text.
        detail: String,
    },
    /// The events of the link are not taken by the program that owns it.
    #[error("{unread} events of this link were not taken; it is closed")]
    Unattended {
        /// Events that wait.
        unread: usize,
    },
    /// The peer proved another cluster's key, or none of this role.
    #[error(
        "the {} does not have this cluster's key (cluster {cluster}). Compare `kimi key id` on both machines, bring the \
         file cluster.key over with the command that `kimi key show` prints, and start kimi there again",
        match ours { Role::Coordinator | Role::Observer => "worker", Role::Worker => "coordinator" }
    )]
    WrongKey {
        /// This side's cluster.
        cluster: ClusterId,
        /// This side.
        ours: Role,
    },
    /// The peer's first bytes are not encrypted.
    #[error(
        "the peer's bytes are not encrypted: it runs with --insecure, or it is no kimi. Start kimi on both machines \
         with the cluster's key, without --insecure"
    )]
    NotEncrypted,
    /// The peer speaks TLS otherwise than a kimi does, or bytes were changed on the way.
    #[error("the encrypted handshake failed: {detail}; is the other end a kimi of the same release?")]
    Handshake {
        /// What was found.
        detail: String,
    },
}

impl LinkError {
    /// An I/O error with what was being done, such as "cannot listen on 127.0.0.1:5000".
    pub(crate) fn io(context: impl Into<String>, error: &io::Error) -> LinkError {
        LinkError::Io { context: context.into(), kind: error.kind(), detail: error.to_string() }
    }

    /// The code under which this error is told to the peer: the one place of that mapping.
    /// `None` if there is nobody to tell: the peer left, or does not speak this protocol.
    pub fn code(&self) -> Option<ErrorCode> {
        Some(match self {
            // A coordinator that encrypts understands from our plain bytes that this side does not.
            LinkError::Frame(FrameError::NotKimi { found: [0x14..=0x17, 0x03, ..] }) => ErrorCode::Malformed,
            LinkError::Frame(FrameError::NotKimi { .. }) => return None,
            LinkError::Frame(FrameError::Version { .. }) => ErrorCode::VersionMismatch,
            LinkError::Frame(FrameError::UnknownKind { .. }) => ErrorCode::UnknownKind,
            LinkError::Frame(FrameError::HeaderTooLarge { .. } | FrameError::PayloadTooLarge { .. }) => {
                ErrorCode::TooLarge
            }
            LinkError::Frame(FrameError::Malformed { .. } | FrameError::Invalid { .. }) => {
                ErrorCode::Malformed
            }
            LinkError::Protocol(ProtocolError::VersionMismatch { .. }) => ErrorCode::VersionMismatch,
            LinkError::Protocol(ProtocolError::RoleMismatch { .. }) => ErrorCode::RoleMismatch,
            LinkError::Protocol(
                ProtocolError::TooManyInFlight { .. }
                | ProtocolError::TooMuchInFlight { .. }
                | ProtocolError::TooManyLooks { .. }
                | ProtocolError::PeerNotReading { .. },
            ) => ErrorCode::Overloaded,
            LinkError::Protocol(_) => ErrorCode::OutOfOrder,
            LinkError::HandshakeTimeout { .. } => ErrorCode::HandshakeTimeout,
            LinkError::Silent { .. } | LinkError::FrameTimeout { .. } => ErrorCode::Timeout,
            LinkError::Unattended { .. } => ErrorCode::Overloaded,
            LinkError::Failed(report) => report.code,
            LinkError::Peer(_)
            | LinkError::PeerLeft { .. }
            | LinkError::Closed
            | LinkError::Lost { .. }
            | LinkError::Io { .. }
            | LinkError::WrongKey { .. }
            | LinkError::NotEncrypted
            | LinkError::Handshake { .. } => return None,
        })
    }
}
