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
const ELSEWHERE: [(&str, &str); 7] = [
    ("/api/chat", "/v1/chat/completions"),
    ("/api/generate", "/v1/completions"),
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

/// 404 that says what is served.
pub(super) fn error(method: &str, path: &str) -> ApiError {
    let below = path.strip_prefix("/v1/").unwrap_or(path.trim_start_matches('/'));
    let service = below.split('/').next().unwrap_or_default();
    if let Some((_, what)) = OTHER_SERVICES.iter().find(|(name, _)| *name == service) {
        return ApiError::no_such_service(path, what);
    }
    let hint = match meant(path) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("the API has {}", PATHS.join(", ")),
    };
    ApiError::no_route(method, path, &hint)
}

/// The path that was probably meant: `/v1` left out, or there twice, or a slash too many.
fn meant(path: &str) -> Option<String> {
    let path = path.trim_end_matches('/');
    let known = |path: &str| {
        PATHS.contains(&path) || path.starts_with("/v1/models/") || path.starts_with("/v1/responses/")
    };
    let tries = [path.to_owned(), format!("/v1{path}"), path.replacen("/v1", "", 1), path.replace("//", "/")];
    let elsewhere = || ELSEWHERE.iter().find(|(there, _)| *there == path).map(|(_, here)| (*here).to_owned());
    tries.into_iter().find(|path| known(path)).or_else(elsewhere)
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
            ("/models/kimi-tiny", "/v1/models/kimi-tiny"),
            ("/v1/health", "/health"),
            ("/api/chat", "/v1/chat/completions"),
        ];
        for (path, expected) in cases {
            let error = error("POST", path);
            let text = format!("did you mean {expected}?");
            assert!(error.message.ends_with(&text) && error.status == 404, "{path}: {error}");
        }
        assert!(error("GET", "/v1/nothing").message.contains("the API has /v1/chat/completions"));
        for path in ["/v1/embeddings", "/embeddings", "/v1/images/generations", "/v1/audio/speech"] {
            assert_eq!(error("POST", path).code, Some("unsupported_endpoint"), "{path}");
        }
    }
}
