//! `kimi api-key`.

use std::path::Path;

use anyhow::Context;
use serde_json::json;

use super::Outcome;
use crate::api_keys::{self, ApiKey, Limits};
use crate::cli::args::{ApiKeyArgs, ApiKeyCommand};
use crate::cli::ui;
use crate::table::Table;

/// Makes, lists or ends keys of the API.
///
/// # Errors
/// If the file can't be used, a name is taken, or there is none.
pub fn run(args: &ApiKeyArgs) -> anyhow::Result<Outcome> {
    let path = match &args.api_key_file {
        Some(path) => path.clone(),
        None => api_keys::default_path()?,
    };
    match &args.command {
        ApiKeyCommand::New { name, limits } => new(&path, name, limits.limits())?,
        ApiKeyCommand::List { json } => list(&path, *json)?,
        ApiKeyCommand::Revoke { name } => {
            api_keys::revoke(&path, name)?;
            ui::notice(format_args!("{name} is no key any more: running servers notice within seconds"));
        }
    }
    Ok(Outcome::Success)
}

/// The key alone is on stdout, so that a script can take it.
fn new(path: &Path, name: &str, limits: Limits) -> anyhow::Result<()> {
    let (key, text) = ApiKey::generate(name, limits).context("the system gives no random numbers")?;
    api_keys::add(path, &key)?;
    super::print(&format!("{text}\n"))?;
    let flag = match api_keys::default_path() {
        Ok(usual) if usual == path => String::new(),
        _ => format!(" --api-key-file {}", path.display()),
    };
    ui::notice(format_args!(
        "That is the key of {name}. It is shown this once: {} has only its hash. Clients send it as their API key, to a server \
         that was started with\n  kimi serve MODEL{flag}",
        path.display()
    ));
    Ok(())
}

fn list(path: &Path, as_json: bool) -> anyhow::Result<()> {
    let keys = if path.exists() { api_keys::read(path)? } else { Vec::new() };
    if as_json {
        let of = |ApiKey { name, limits, .. }: &ApiKey| json!({"name": name, "chats": limits.chats, "requests": limits.requests, "tokens": limits.tokens});
        return super::print_json(&keys.iter().map(of).collect::<Vec<_>>());
    }
    if keys.is_empty() {
        ui::notice(format_args!("{} has no keys; `kimi api-key new NAME` makes one", path.display()));
        return Ok(());
    }
    let mut table =
        Table::new(&["key", "chats at a time", "requests a minute", "tokens a minute"], &[1, 2, 3]);
    let limit = |limit: Option<u32>| limit.map_or("any".to_owned(), |limit| limit.to_string());
    for ApiKey { name, limits, .. } in keys {
        table.row([name, limit(limits.chats), limit(limits.requests), limit(limits.tokens)]);
    }
    super::print(&table.to_string())
}
