// Messages as they are kept, and as the API has them.
//
// Kept are `{role: "user", content}`, `{role: "tool", id, name, content}`, and answers with `content`, `reasoning`, `calls`, and what
// is known of how they came: `tokens`, `first`, `thought`, `seconds`, `note`, `error`.

/** What the model is told where the user goes on without a tool's result. */
export const NO_RESULT = "The user gave no result.";

/** Adds an event to an answer. */
export function take(message, event, seconds) {
  if (event.usage) message.tokens = event.usage.completion_tokens;
  message.model = event.model;
  const choice = event.choices?.[0];
  if (!choice) return;
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta ?? {};
  if (content || reasoning || calls) message.first ??= seconds;
  if (reasoning) message.reasoning += reasoning;
  if (content || calls) message.thought ??= message.reasoning ? seconds : undefined;
  if (content) message.content += content;
  for (const { index, id, function: part } of calls ?? []) {
    const call = (message.calls[index] ??= { id: "", name: "", arguments: "" });
    call.id = id ?? call.id;
    call.name = part?.name ?? call.name;
    call.arguments += part?.arguments ?? "";
  }
  if (choice.finish_reason === "length") message.note = "The limit of tokens is reached";
}

/** A conversation as the API takes it. */
export function wire(chat) {
  const messages = chat.system.trim() ? [{ role: "system", content: chat.system }] : [];
  for (const message of chat.messages) {
    const { role, content, reasoning, calls } = message;
    if (role === "user") messages.push({ role, content });
    else if (role === "tool") messages.push({ role, tool_call_id: message.id, content });
    else if (content || calls.length > 0) {
      const sent = { role, content: content || null };
      if (reasoning) sent.reasoning_content = reasoning;
      if (calls.length > 0) {
        sent.tool_calls = calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
      }
      messages.push(sent);
    }
  }
  return messages;
}

/** The result of a call. */
export const result = (call, content) => ({ role: "tool", id: call.id, name: call.name, content });

/** Whether a text is JSON as a whole. */
export function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** JSON over several lines; other text as it is. */
export function pretty(text) {
  return isJson(text) ? JSON.stringify(JSON.parse(text), null, 2) : text;
}
