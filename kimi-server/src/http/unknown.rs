//! What to say of a path that is not served.

use super::error::ApiError;

/// Paths that take requests, for hints.
const PATHS: [&str; 9] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/tokenize",
    "/v1/detokenize",
    "/v1/models",
    "/health",
];

/// Paths of other servers, and where the same is asked for here.
const ELSEWHERE: [(&str, &str); 10] = [
    ("/api/chat", "/v1/chat/completions"),
    ("/api/generate", "/v1/completions"),
    ("/api/show", "/v1/models"),
    ("/api/ps", "/health"),
    ("/props", "/v1/models"),
    ("/completion", "/v1/completions"),
    ("/generate", "/v1/completions"),
    ("/api/tags", "/v1/models"),
    ("/api/v0/models", "/v1/models"),
    ("/healthz", "/health"),
];

/// Parts of OpenAI's API that need another kind of model, or a service around it.
const OTHER_SERVICES: [(&str, &str); 13] = [
    ("embeddings", "Kimi models write text and give no embeddings; use a server with an embedding model"),
    ("rerank", "Kimi models write text and rank nothing; use a server with a reranking model"),
    ("score", "Kimi models write text and score nothing; use a server with a scoring model"),
    ("images", "Kimi models here take and give text only"),
    ("audio", "Kimi models here take and give text only"),
    ("videos", "Kimi models here take and give text only"),
    ("realtime", "Kimi models here take and give text only"),
    ("moderations", "there is no moderation model"),
    ("files", "files are not kept here; put their text into the messages"),
    ("uploads", "files are not kept here; put their text into the messages"),
    ("batches", "send the requests one by one or at a time; they share the model"),
    ("fine_tuning", "models are not trained here"),
    ("assistants", "use /v1/chat/completions"),
];

/// Below it are Ollama's own paths, which clients use that take a server for Ollama.
const OLLAMA: &str = "/api/";

/// 404 that says what is served.
pub(super) fn error(method: &str, path: &str) -> ApiError {
    let below = path.strip_prefix("/v1/").unwrap_or(path.trim_start_matches('/'));
    let service = below.split('/').next().unwrap_or_default();
    if let Some((_, what)) = OTHER_SERVICES.iter().find(|(name, _)| *name == service) {
        return ApiError::no_such_service(path, what);
    }
    let served = || format!("the API has {}", PATHS.join(", "));
    let hint = match meant(path) {
        Some(meant) if path.starts_with(OLLAMA) => format!("{NO_OLLAMA}; did you mean {meant}?"),
        Some(meant) => format!("{}did you mean {meant}?", base_url(path, &meant)),
        None if path.starts_with(OLLAMA) => format!("{NO_OLLAMA}; {}", served()),
        None if matches!(path, "/v1" | "/v1/") => format!("{BASE}; {}", served()),
        None => served(),
    };
    ApiError::no_route(method, path, &hint)
}

const NO_OLLAMA: &str = "Ollama's own API is not served; choose \"OpenAI compatible\" in the client, with a base URL that ends in /v1";
const BASE: &str = "this is the base URL for OpenAI's clients, which put a path behind it";

/// What is wrong with the client's base URL, if more than the end of a path differs.
fn base_url(path: &str, meant: &str) -> &'static str {
    match (path.trim_end_matches('/') == meant, meant) {
        (true, _) | (_, "/health") => "",
        (false, meant) if meant.starts_with("/v1/messages") => {
            "the base URL for Anthropic's clients is this server's address without /v1; "
        }
        (false, _) => "the base URL for OpenAI's clients is this server's address and /v1; ",
    }
}

/// The path that was probably meant: something is before it, `/v1` is left out or there twice, or a slash too many.
fn meant(path: &str) -> Option<String> {
    let given = path.trim_end_matches('/');
    let path = given.to_ascii_lowercase();
    if let Some((_, here)) = ELSEWHERE.iter().find(|(there, _)| *there == path) {
        return Some((*here).to_owned());
    }
    let tail = |known: &str| path.ends_with(known.strip_prefix("/v1").unwrap_or(known));
    let longest = PATHS.iter().filter(|known| tail(known)).max_by_key(|known| known.len());
    // Those with an id at their end.
    let below = || {
        let at = ["/models/", "/responses/"].iter().filter_map(|part| path.find(part)).min()?;
        Some(format!("/v1{}", &given[at..])).filter(|meant| meant != given)
    };
    longest.map(|known| (*known).to_owned()).or_else(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_were_nearly_right_are_named() {
        let cases = [
            ("/chat/completions", "/v1/chat/completions"),
            ("/v1/v1/chat/completions", "/v1/chat/completions"),
            ("/v1/chat/completions/", "/v1/chat/completions"),
            ("//v1/models", "/v1/models"),
            ("/models", "/v1/models"),
            ("/models/Kimi-K2", "/v1/models/Kimi-K2"),
            ("/v1/health", "/health"),
            ("/api/chat", "/v1/chat/completions"),
            ("/api/tags", "/v1/models"),
            ("/openai/deployments/kimi/chat/completions", "/v1/chat/completions"),
            ("/v1/chat/completions/chat/completions", "/v1/chat/completions"),
            ("/v1/v1/messages/count_tokens", "/v1/messages/count_tokens"),
            ("/anthropic/v1/messages", "/v1/messages"),
            ("/v1/Chat/Completions", "/v1/chat/completions"),
        ];
        for (path, expected) in cases {
            let error = error("POST", path);
            let text = format!("did you mean {expected}?");
            assert!(error.message.ends_with(&text) && error.status == 404, "{path}: {error}");
        }
        for (path, says) in [
            ("/v1/v1/chat/completions", "for OpenAI's clients is this server's address and /v1"),
            ("/v1/v1/messages", "for Anthropic's clients is this server's address without /v1"),
            ("/v1/", "this is the base URL"),
            ("/api/version", "Ollama's own API is not served"),
            ("/api/chat", "Ollama's own API is not served"),
        ] {
            let error = error("POST", path);
            assert!(error.message.contains(says), "{path}: {error}");
        }
        assert!(!error("POST", "/v1/models/").message.contains("base URL"));
        assert!(error("GET", "/v1/nothing").message.contains("the API has /v1/chat/completions"));
        for path in ["/v1/embeddings", "/embeddings", "/v1/images/generations", "/v1/audio/speech"] {
            assert_eq!(error("POST", path).code, Some("unsupported_endpoint"), "{path}");
        }
    }
}
