//! The files of the embedded checkpoint.

/// Its model id.
pub(crate) const NAME: &str = "kimi-tiny";

macro_rules! embed {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../assets/kimi-tiny/", $name)))),*]
    };
}

/// Names and contents.
pub(crate) const FILES: &[(&str, &[u8])] = embed![
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tiktoken.model",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "model.safetensors",
];
