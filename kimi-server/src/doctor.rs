//! What keeps a model from running, or makes it slow: findings about this machine and the others, each with what it means
//! and what mends it.

pub mod disk;
pub mod links;
pub mod machine;

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It runs, but slower or less safely than it could.
    Warn,
    /// It does not run.
    Fail,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// The node that it is about; `None` for this machine.
    pub node: Option<String>,
    /// What was looked at.
    pub check: &'static str,
    /// What was found.
    pub found: String,
    /// What that means; empty where all is well.
    pub means: String,
    /// What mends it: a command where there is one.
    pub fix: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, node: None, check, found: found.into(), means: String::new(), fix: None }
    }

    /// Could be better.
    pub fn warn(check: &'static str, found: impl Into<String>, means: impl Into<String>) -> Self {
        Self { level: Level::Warn, means: means.into(), ..Self::ok(check, found) }
    }

    /// Keeps the model from running.
    pub fn fail(check: &'static str, found: impl Into<String>, means: impl Into<String>) -> Self {
        Self { level: Level::Fail, means: means.into(), ..Self::ok(check, found) }
    }

    /// What mends it.
    #[must_use]
    pub fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }

    /// About another node.
    #[must_use]
    pub fn of(self, node: &str) -> Self {
        Self { node: Some(node.to_owned()), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        let node = self.node.as_deref().map(|node| format!("{node}: ")).unwrap_or_default();
        write!(f, "{level:5} {:14} {node}{}", self.check, self.found)?;
        if !self.means.is_empty() {
            write!(f, "\n{:20} {}", "", self.means)?;
        }
        match &self.fix {
            Some(fix) => write!(f, "\n{:20} -> {fix}", ""),
            None => Ok(()),
        }
    }
}
