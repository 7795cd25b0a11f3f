//! `kimi key`.

use std::path::{Path, PathBuf};

use kimi_net::ClusterKey;

use super::Outcome;
use crate::cli::args::{KeyArgs, KeyCommand};
use crate::cli::ui;
use crate::cluster_key::{self, FoundKey, KeyFileError};

/// Makes, shows or names the cluster's key.
///
/// # Errors
/// If there is none, it can't be read, or one is there already.
pub fn run(args: &KeyArgs) -> anyhow::Result<Outcome> {
    let file = args.cluster_key_file.as_deref();
    match args.command {
        KeyCommand::New { force } => new(file, force)?,
        KeyCommand::Show => {
            let found = find(file)?;
            super::print(&format!("{}\n", *found.key.to_text()))?;
            ui::notice(bring_over(&PathBuf::from(&found.place)));
        }
        KeyCommand::Id => super::print(&format!("{}\n", find(file)?.key.id()))?,
    }
    Ok(Outcome::Success)
}

fn new(file: Option<&Path>, force: bool) -> anyhow::Result<()> {
    let path = match file {
        Some(path) => path.to_owned(),
        None => cluster_key::default_path()?,
    };
    let key = ClusterKey::generate()?;
    cluster_key::write(&path, &key, force)?;
    let text = bring_over(&path);
    super::print(&format!("{} is the key of cluster {}.\n{text}\n", path.display(), key.id()))?;
    if file.is_none() && std::env::var_os(cluster_key::VARIABLE).is_some() {
        ui::notice(format_args!("note: {} is set and is used in place of the file", cluster_key::VARIABLE));
    }
    Ok(())
}

fn find(file: Option<&Path>) -> anyhow::Result<FoundKey> {
    match cluster_key::find(file)? {
        Some(found) => Ok(found),
        None => Err(missing(cluster_key::default_path())),
    }
}

/// What to do where there is no key.
pub(super) fn missing(path: Result<PathBuf, KeyFileError>) -> anyhow::Error {
    let place = path.map_or_else(|_| String::new(), |path| format!(" ({})", path.display()));
    anyhow::anyhow!(
        "this machine has no cluster key{place}. Make one with\n  kimi key new\nor, if another machine of the cluster has \
         it, bring it over with the command that `kimi key show` prints there"
    )
}

/// How to bring a key to another machine.
fn bring_over(place: &Path) -> String {
    let source = if place.is_file() {
        format!("< {}", quoted(&place.display().to_string()))
    } else {
        format!("<<< \"${}\"", cluster_key::VARIABLE)
    };
    format!(
        "Each machine of the cluster needs it. From here, with the other machine's user and name:\n  \
         ssh USER@HOST 'umask 077; mkdir -p ~/.config/kimi; cat > ~/.config/kimi/cluster.key' {source}\n\
         Then `kimi worker` there and `kimi serve MODEL` here. Who has the key can read everything on the cluster's links."
    )
}

/// A word of a shell's command line.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+@".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
