//! Finding models by name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;

use kimi_core::chat_model::ModelDefaults;
use kimi_server::models::{EMBEDDED, Lookup, LookupError, Places, Registry, Source};

fn checkpoint(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
}

/// As [`checkpoint`], with weights.
fn whole(folder: &Path) {
    checkpoint(folder);
    fs::write(folder.join("model.safetensors"), "").unwrap();
}

#[track_caller]
fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

fn lookup(home: &Path) -> Lookup {
    let places = Places {
        home: Some(home.to_owned()),
        folders: vec![home.join("models")],
        caches: vec![home.join("cache/hub")],
    };
    Lookup::new(Registry::builtin(), places)
}

fn folder(lookup: &Lookup, name: &str) -> std::path::PathBuf {
    match lookup.find(name).unwrap_or_else(|e| panic!("{e}")).source {
        Source::Folder(path) => path,
        Source::Embedded => panic!("{name} is the embedded model"),
    }
}

#[test]
fn the_embedded_model_opens() {
    let home = tempfile::tempdir().unwrap();
    let found = lookup(home.path()).find(EMBEDDED).unwrap();
    assert_eq!((found.id.as_str(), &found.source), ("kimi-tiny", &Source::Embedded));
    assert!(found.open().unwrap().config().num_hidden_layers > 1);
}

#[test]
fn a_path_is_taken_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let lookup = lookup(home.path());
    let path = home.path().join("somewhere/K2");
    checkpoint(&path);
    let found = lookup.find(path.to_str().unwrap()).unwrap();
    assert_eq!((found.id.as_str(), found.source), ("K2", Source::Folder(path)));
    assert_eq!(folder(&lookup, "~/somewhere/K2"), home.path().join("somewhere/K2"));
    for missing in ["/no/such/folder", "./nothing", "~/nothing", "a/b/c"] {
        assert!(matches!(lookup.find(missing), Err(LookupError::NoFolder { .. })), "{missing}");
    }
}

#[test]
fn hub_ids_in_all_usual_layouts() {
    for layout in ["models/org/Name-1.5", "models/org--Name-1.5", "models/Name-1.5"] {
        let home = tempfile::tempdir().unwrap();
        checkpoint(&home.path().join(layout));
        assert_eq!(folder(&lookup(home.path()), "org/Name-1.5"), home.path().join(layout));
    }
}

#[test]
fn a_whole_folder_is_better_than_a_part() {
    let home = tempfile::tempdir().unwrap();
    checkpoint(&home.path().join("models/Name"));
    assert_eq!(folder(&lookup(home.path()), "org/Name"), home.path().join("models/Name"));
    let cached = home.path().join("cache/hub/models--org--Name/snapshots/aaa");
    whole(&cached);
    assert_eq!(folder(&lookup(home.path()), "org/Name"), cached);
}

#[test]
fn the_cache_of_hugging_face() {
    let home = tempfile::tempdir().unwrap();
    let entry = home.path().join("cache/hub/models--org--Name");
    checkpoint(&entry.join("snapshots/aaa"));
    assert_eq!(folder(&lookup(home.path()), "org/Name"), entry.join("snapshots/aaa"));
    let by_entry = lookup(home.path()).find(entry.to_str().unwrap()).unwrap();
    assert_eq!(
        (by_entry.id.as_str(), by_entry.source),
        ("org/Name", Source::Folder(entry.join("snapshots/aaa")))
    );
    whole(&entry.join("snapshots/bbb"));
    assert_eq!(
        folder(&lookup(home.path()), "org/Name"),
        entry.join("snapshots/bbb"),
        "the only one that is whole"
    );
    whole(&entry.join("snapshots/aaa"));
    let error = lookup(home.path()).find("org/Name").unwrap_err().to_string();
    says(&error, &["2 snapshots", "no refs/main", "give the path of one", "snapshots/aaa", "snapshots/bbb"]);
    fs::create_dir_all(entry.join("refs")).unwrap();
    fs::write(entry.join("refs/main"), "bbb\n").unwrap();
    assert_eq!(folder(&lookup(home.path()), "org/Name"), entry.join("snapshots/bbb"));
    // The newest revision is not whole, the one before it is.
    fs::remove_file(entry.join("snapshots/bbb/model.safetensors")).unwrap();
    let error = lookup(home.path()).find("org/Name").unwrap_err().to_string();
    says(
        &error,
        &["snapshots/bbb", "not whole", "newest revision", "snapshots/aaa is whole", "give its path"],
    );
    // A reference to what is not there is none.
    fs::write(entry.join("refs/main"), "ccc").unwrap();
    assert_eq!(folder(&lookup(home.path()), "org/Name"), entry.join("snapshots/aaa"));
    let by_path = lookup(home.path()).find(entry.join("snapshots/bbb").to_str().unwrap()).unwrap();
    assert_eq!(by_path.id, "org/Name");
}

#[test]
fn a_registry_name_stands_for_a_hub_id() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("models/Kimi-K2-Instruct-MLX-3.985bit");
    checkpoint(&path);
    let found = lookup(home.path()).find("kimi-k2-4bit").unwrap();
    assert_eq!((found.id.as_str(), found.layers), ("kimi-k2-4bit", Some(61)));
    assert_eq!(found.source, Source::Folder(path));
}

#[test]
fn not_found_says_where_it_looked_and_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join("models/Kimi-K2-Instruct-MLX-3.985bit")).unwrap();
    let text = lookup(home.path()).find("kimi-k2-4bit").unwrap_err().to_string();
    for part in [
        "models/inferencerlabs/Kimi-K2-Instruct-MLX-3.985bit",
        "without config.json",
        "models--inferencerlabs--Kimi-K2-Instruct-MLX-3.985bit",
        "hf download inferencerlabs/Kimi-K2-Instruct-MLX-3.985bit",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let text = lookup(home.path()).find("no-such-name").unwrap_err().to_string();
    assert!(text.contains("kimi-k2-4bit") && text.contains("models/no-such-name"), "{text}");
}

#[test]
fn another_machine_can_not_name_a_path() {
    let home = tempfile::tempdir().unwrap();
    checkpoint(&home.path().join("models/K2"));
    let lookup = lookup(home.path());
    assert!(lookup.find_remote("K2").is_ok());
    let path = home.path().join("models/K2");
    for name in [path.to_str().unwrap(), "../models/K2", "~/models/K2", "a/../K2", "", ".", "..", "x\0y"] {
        assert!(matches!(lookup.find_remote(name), Err(LookupError::NotAName { .. })), "{name:?}");
    }
}

#[test]
fn the_users_registry() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("models.toml");
    let path = home.path().join("disk/K2");
    checkpoint(&path);
    let text = "[models.mine]\npath = \"~/disk/K2\"\nlayers = 5\ntemperature = 0.25\n[models.kimi-k2-4bit]\nhub = \"me/Other\"\n";
    fs::write(&file, text).unwrap();
    let registry = Registry::builtin().with_file(&file).unwrap();
    assert_eq!(registry.get("kimi-k2-4bit").unwrap().hub.as_deref(), Some("me/Other"));
    let lookup = Lookup::new(registry, Places { home: Some(home.path().to_owned()), ..Places::default() });
    assert_eq!(folder(&lookup, "mine"), path);
    let own = lookup.find("mine").unwrap().sampling;
    let defaults = own.apply(ModelDefaults::default()).mode(None);
    assert_eq!((defaults.temperature, defaults.top_p), (0.25, 1.0));

    for (bad, part) in [
        ("[models.x]\n", "none of hub and path"),
        ("[models.x]\nhub = \"a/b\"\npath = \"/c\"\n", "both of hub and path"),
        ("[models.x]\nhubb = \"a/b\"\n", "hubb"),
        ("[modules.x]\nhub = \"a/b\"\n", "modules"),
        ("[models.x]\nlayers = \"61\"\nhub = \"a/b\"\n", "line 2"),
        (
            "[models.x]\nhub = \"a/b\"\ntemperature = 3\n",
            "models.x: temperature = 3, expected a number from 0 to 2",
        ),
        ("models = 5", "models"),
        ("[models", "line 1"),
    ] {
        fs::write(&file, bad).unwrap();
        let error = Registry::builtin().with_file(&file).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("models.toml"), "{bad:?}: {error}");
    }
    assert!(Registry::builtin().with_file(&home.path().join("none.toml")).is_err());
}

#[test]
fn a_wrong_layer_count_in_the_registry() {
    let home = tempfile::tempdir().unwrap();
    let mut found = lookup(home.path()).find(EMBEDDED).unwrap();
    found.layers = Some(61);
    let error = found.open().unwrap_err().to_string();
    assert!(error.contains("61"), "{error}");
}
