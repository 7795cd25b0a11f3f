//! Stored responses: looking at one, at what it answered, and forgetting it.

use hyper::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::http::Body;
use crate::http::error::ApiError;
use crate::http::read;
use crate::http::routes::{App, json_response};
use crate::http::unknown;

/// Items of a page, if the request does not say.
const PAGE: usize = 20;
const MAX_PAGE: usize = 100;

/// Answers `method /v1/responses/{rest}?{query}`.
///
/// # Errors
/// 404 for a response that is not stored, 405 for another method, 400 for what a stored response can't do.
pub(in crate::http) fn handle(
    app: &App,
    method: &Method,
    rest: &str,
    query: Option<&str>,
) -> Result<Response<Body>, ApiError> {
    let path = || format!("/v1/responses/{rest}");
    let (id, below) = rest.split_once('/').unwrap_or((rest, ""));
    let id = percent_decode_str(id).decode_utf8_lossy();
    let not_found = || ApiError::no_response(&id);
    let stored = || app.responses.turn(&id).ok_or_else(not_found);
    let value = match (below, method) {
        ("", &Method::GET | &Method::HEAD) => {
            if parameter(query, "stream").is_some_and(|stream| stream == "true") {
                let message = "is only supported where a response is made, with POST /v1/responses";
                return Err(ApiError::field("stream", "unsupported_parameter", message));
            }
            // As it was stored, which was as JSON.
            serde_json::from_str(&stored()?.response)
                .map_err(|error| ApiError::internal(error.to_string()))?
        }
        ("", &Method::DELETE) => {
            if !app.responses.delete(&id) {
                return Err(not_found());
            }
            json!({"id": id, "object": "response", "deleted": true})
        }
        ("", _) => return Err(ApiError::method(method.as_str(), &path(), "GET, HEAD, DELETE")),
        ("input_items", &Method::GET | &Method::HEAD) => page(stored()?.input(), query)?,
        ("input_items", _) => return Err(ApiError::method(method.as_str(), &path(), "GET, HEAD")),
        ("cancel", &Method::POST) => {
            stored()?;
            let message = "only a response in the background can be cancelled, and there are none here; close the connection to \
                           end an answer";
            return Err(ApiError::invalid("invalid_value", message));
        }
        ("cancel", _) => return Err(ApiError::method(method.as_str(), &path(), "POST")),
        _ => return Err(unknown::error(method.as_str(), &path())),
    };
    Ok(json_response(StatusCode::OK, &value))
}

/// A parameter of a query.
fn parameter<'q>(query: Option<&'q str>, name: &str) -> Option<std::borrow::Cow<'q, str>> {
    let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()?;
    Some(percent_decode_str(value).decode_utf8_lossy())
}

/// Some of the items, in OpenAI's shape of lists.
fn page(mut items: Vec<Value>, query: Option<&str>) -> Result<Value, ApiError> {
    let wrong = |name: &str, expected: &str, found: &str| {
        let found = read::describe(&Value::from(found));
        Err(ApiError::field(name, "invalid_value", format!("expected {expected}, found {found}")))
    };
    match parameter(query, "order").as_deref() {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(other) => return wrong("order", "\"asc\" or \"desc\"", other),
    }
    let limit = match parameter(query, "limit") {
        None => PAGE,
        Some(text) => match text.parse() {
            Ok(limit @ 1..=MAX_PAGE) => limit,
            _ => return wrong("limit", &format!("a whole number from 1 to {MAX_PAGE}"), &text),
        },
    };
    if let Some(after) = parameter(query, "after") {
        match items.iter().position(|item| item["id"] == after.as_ref()) {
            Some(at) => drop(items.drain(..=at)),
            None => return wrong("after", "the id of one of the items", &after),
        }
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    let (first, last) = (id(items.first()), id(items.last()));
    Ok(json!({"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": has_more}))
}
