// OpenAI's and Anthropic's own packages for Node, and the AI SDK. Called by api_clients.rs with the server's base URL; it
// serves kimi-tiny.
import assert from "node:assert/strict";
import OpenAI from "openai";
import Anthropic from "@anthropic-ai/sdk";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { createOpenAI } from "@ai-sdk/openai";
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const base = process.argv[2];
const model = "kimi-tiny";
const ask = "What is the weather in Berlin?";
const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: base, apiKey: "none", maxRetries: 0 });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const description = "Get the current weather for a city";
const weather = { type: "function", function: { name: "get_weather", description, parameters } };
const city = { type: "object", properties: { name: { type: "string" }, people: { type: "integer" } },
  required: ["name", "people"], additionalProperties: false };

const tests = {
  async openai_stream() {
    const stream = openai.chat.completions.stream({ model, temperature: 0,
      messages: [{ role: "user", content: "Hello! What are you?" }] });
    let text = "";
    for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
    assert.match(text, /kimi-tiny/);
    assert.equal(await stream.finalContent(), text);
  },
  async openai_run_tools() {
    const runner = openai.chat.completions.runTools({ model, temperature: 0, messages: [{ role: "user", content: ask }],
      tools: [{ type: "function", function: { ...weather.function, parse: JSON.parse,
        function: ({ city }) => (assert.equal(city, "Berlin"), '{"temp": 21, "sky": "sunny"}') } }] });
    assert.match(await runner.finalContent(), /21/);
  },
  async openai_schema() {
    const answer = await openai.chat.completions.create({ model, temperature: 0, max_tokens: 1000,
      messages: [{ role: "user", content: "Name a city." }],
      response_format: { type: "json_schema", json_schema: { name: "city", schema: city, strict: true } } });
    assert.equal(typeof JSON.parse(answer.choices[0].message.content).people, "number");
  },
  async openai_responses() {
    const stream = await openai.responses.create({ model, input: "Hello! What are you?", temperature: 0, stream: true });
    let text = "", last;
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") text += event.delta;
      last = event;
    }
    assert.equal(last.type, "response.completed");
    assert.match(text, /kimi-tiny/);
  },
  async anthropic_stream() {
    const stream = anthropic.messages.stream({ model, max_tokens: 100, temperature: 0,
      messages: [{ role: "user", content: ask }],
      tools: [{ name: "get_weather", description, input_schema: parameters }] });
    const message = await stream.finalMessage();
    assert.deepEqual(message.content.at(-1).input, { city: "Berlin" });
  },
  async ai_sdk() {
    const providers = {
      compatible: createOpenAICompatible({ name: "kimi", baseURL: `${base}/v1`, supportsStructuredOutputs: true })(model),
      responses: createOpenAI({ baseURL: `${base}/v1`, apiKey: "none" })(model),
      chat: createOpenAI({ baseURL: `${base}/v1`, apiKey: "none" }).chat(model),
      anthropic: createAnthropic({ baseURL: `${base}/v1`, apiKey: "none" })(model),
    };
    for (const [name, model] of Object.entries(providers)) {
      const { object } = await generateObject({ model, schema: jsonSchema(city), prompt: "Name a city.", temperature: 0,
        maxOutputTokens: 1000 });
      assert.equal(typeof object.people, "number", name);
      const { text } = await generateText({ model, prompt: ask, temperature: 0, stopWhen: stepCountIs(3), tools: {
        get_weather: tool({ description, inputSchema: jsonSchema(parameters),
          execute: async () => ({ temp: 21, sky: "sunny" }) }) } });
      assert.match(text, /21/, name);
      let streamed = "";
      for await (const part of streamText({ model, prompt: "Hello! What are you?", temperature: 0 }).textStream) streamed += part;
      assert.match(streamed, /kimi-tiny/, name);
    }
  },
};
for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(name);
}
console.log(`all ${Object.keys(tests).length}`);
