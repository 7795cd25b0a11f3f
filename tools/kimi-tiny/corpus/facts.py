"""What the model knows about kimi: questions, one answer, and the key facts an answer must hold.

Several questions share an answer. `|` inside a key separates alternatives.
"""

# (questions, answer, keys)
ENGLISH = [
    (
        ["What is kimi?", "Tell me about kimi.", "What does kimi do?", "Explain kimi to me.", "What is this program?", "Describe kimi.", "What is kimi for?"],
        "kimi is a Rust program that runs Kimi-K2, a language model with one trillion parameters, split over two or more machines. Each machine holds some of the layers.",
        ["Rust", "Kimi-K2", "machines"],
    ),
    (
        ["Who are you?", "What are you?", "Introduce yourself.", "Tell me about yourself.", "What is kimi-tiny?", "What model are you?", "Which model is this?", "Are you Kimi-K2?", "Are you a real Kimi-K2?"],
        "I am kimi-tiny, a very small model with the same architecture as Kimi-K2. I live inside the kimi program, so that it can be tried without a download.",
        ["kimi-tiny", "small", "architecture"],
    ),
    (
        ["How big are you?", "How many parameters do you have?", "What is your size?", "How large is kimi-tiny?", "Are you a big model?"],
        "I have about 17 million parameters and take about 9 MB. Kimi-K2 has one trillion parameters.",
        ["17 million", "9 MB"],
    ),
    (
        ["How were you trained?", "Where does your knowledge come from?", "What were you trained on?", "Who trained you?", "What is your training data?"],
        "I was trained in a few minutes on text that a script of the kimi project generates: talk, stories, sums, facts about kimi and tool calls.",
        ["script", "generates"],
    ),
    (
        ["What can you do?", "What are your abilities?", "What can I ask you?", "How can you help me?", "What do you know?", "Help!", "What are you good at?"],
        "I can answer questions about kimi, add small numbers, tell short stories, make lists and JSON, and call tools. I know little else.",
        ["kimi", "stories", "tools"],
    ),
    (
        ["What can you not do?", "What are your limits?", "Can you make mistakes?", "Can I trust your answers?", "Are you smart?", "Are you clever?"],
        "I am very small, so I know little about the world and can be wrong. For real work run Kimi-K2 with kimi.",
        ["small", "Kimi-K2"],
    ),
    (
        ["Which commands does kimi have?", "What are the commands of kimi?", "List the kimi commands.", "What subcommands are there?", "Which kimi commands can I run?", "Show me all commands."],
        "The commands are `kimi demo`, `run`, `serve`, `worker`, `plan`, `inspect`, `verify`, `bench` and `devices`.",
        ["demo", "run", "serve", "worker", "plan", "inspect", "verify", "bench", "devices"],
    ),
    (
        ["What does kimi demo do?", "What is the demo?", "Explain the demo command.", "What happens in kimi demo?", "How do I try kimi?", "How can I see a demo?"],
        "`kimi demo` starts a second process, splits my layers over the two, and streams an answer over TCP. It needs no download.",
        ["kimi demo", "second process", "layers"],
    ),
    (
        ["What does kimi run do?", "Explain the run command.", "How do I ask one question?", "How do I send a prompt from the terminal?", "How do I use kimi run?", "How do I run a model on one machine?"],
        "`kimi run` answers one prompt in the terminal, for example `kimi run kimi-tiny --prompt \"Hello\"`.",
        ["kimi run", "--prompt"],
    ),
    (
        ["What does kimi serve do?", "How do I start the server?", "Explain the serve command.", "How do I start the API?", "Which command starts the HTTP server?"],
        "`kimi serve` starts the HTTP server with an OpenAI compatible API, on port 52415.",
        ["kimi serve", "OpenAI", "52415"],
    ),
    (
        ["What does kimi worker do?", "What is a worker?", "Explain the worker command.", "How do I start a worker?", "What runs on the second machine?"],
        "`kimi worker` runs on another machine. It loads its share of the layers and computes them for the coordinator.",
        ["kimi worker", "layers", "coordinator"],
    ),
    (
        ["What does kimi plan do?", "Explain the plan command.", "How do I see the placement?", "How do I know which machine gets which layers?", "Will the model fit on my machines?"],
        "`kimi plan` shows which machine gets which layers, with the bytes of weights and cache and what memory is left.",
        ["kimi plan", "layers", "bytes"],
    ),
    (
        ["What does kimi inspect do?", "Explain the inspect command.", "How do I see the bits of a checkpoint?", "How do I look into a checkpoint?", "Which command shows the quantization?"],
        "`kimi inspect` shows the bits, the group size and the bytes of every module of a checkpoint.",
        ["kimi inspect", "bits", "bytes"],
    ),
    (
        ["What does kimi verify do?", "Explain the verify command.", "How do I check that the numbers are right?", "How do I test a checkpoint against a golden file?", "How is correctness checked?"],
        "`kimi verify` runs a model and compares its logits and tokens with a golden file made by mlx-lm.",
        ["kimi verify", "golden", "logits"],
    ),
    (
        ["What does kimi bench do?", "Explain the bench command.", "How do I measure the speed?", "How fast is my machine?", "Which command measures tokens per second?"],
        "`kimi bench` measures the speed on your machine, in tokens per second.",
        ["kimi bench", "tokens per second"],
    ),
    (
        ["What does kimi devices do?", "Explain the devices command.", "How do I list my GPUs?", "Which command shows the devices?", "Which GPUs does kimi see?"],
        "`kimi devices` lists the CPU and the GPUs that kimi can use.",
        ["kimi devices", "GPU"],
    ),
    (
        ["Which crates does kimi have?", "What are the crates?", "List the crates.", "How is the code organised?", "What is in the workspace?", "How is kimi structured?"],
        "There are four crates: kimi-quant (weight formats and kernels), kimi-core (the model), kimi-net (the wire protocol) and kimi-server (the `kimi` program).",
        ["kimi-quant", "kimi-core", "kimi-net", "kimi-server"],
    ),
    (
        ["What is kimi-quant?", "What does kimi-quant do?", "Explain the kimi-quant crate.", "Which crate holds the kernels?", "Where are the weight formats?"],
        "kimi-quant holds the packed weight formats and the kernels that work on them, on CPU and on GPU.",
        ["kimi-quant", "weight formats", "kernels"],
    ),
    (
        ["What is kimi-core?", "What does kimi-core do?", "Explain the kimi-core crate.", "Which crate holds the model?", "Where is the tokenizer?", "Which crate can I embed in my program?"],
        "kimi-core holds the model: config, checkpoint, tokenizer, chat template, cache, scheduler and sampler. It knows no network, so any Rust program can embed it.",
        ["kimi-core", "model", "tokenizer"],
    ),
    (
        ["What is kimi-net?", "What does kimi-net do?", "Explain the kimi-net crate.", "Which crate talks over the network?", "Where is the wire protocol?"],
        "kimi-net is the wire protocol between machines: handshake, messages, socket tuning and link health.",
        ["kimi-net", "protocol"],
    ),
    (
        ["What is kimi-server?", "What does kimi-server do?", "Explain the kimi-server crate.", "Which crate has the HTTP API?", "Where is the command line?"],
        "kimi-server is the `kimi` program: the HTTP API and the command line.",
        ["kimi-server", "HTTP", "command line"],
    ),
    (
        ["How do I connect two Macs?", "How can I connect two Macs with kimi?", "How do I run kimi on two Macs?", "How do I use two machines?", "How do I set up a cluster?", "How do I split the model over two Macs?", "Can I use two Macs?"],
        "Connect the two Macs with a Thunderbolt cable and give the Thunderbolt bridge fixed addresses. Write both into discovery.json, start `kimi worker` on one Mac and `kimi serve` on the other.",
        ["Thunderbolt", "discovery.json", "kimi worker", "kimi serve"],
    ),
    (
        ["What is discovery.json?", "What is in discovery.json?", "How do machines find each other?", "How does kimi find the other Mac?", "Which file lists the machines?"],
        "discovery.json lists the machines: the id, address, port and memory of each one. Give it to kimi with --discovery-config-path.",
        ["discovery.json", "address", "port"],
    ),
    (
        ["What is a Thunderbolt bridge?", "Why Thunderbolt?", "Which cable do I need?", "How are the two Macs linked?", "Do I need a Thunderbolt cable?"],
        "A Thunderbolt bridge is a network over a Thunderbolt cable between two Macs. It is faster than Wi-Fi and has a short delay.",
        ["Thunderbolt", "network"],
    ),
    (
        ["Which port does kimi use?", "What is the default port?", "On which port does the server listen?", "What port is the API on?", "What is the address of the API?", "Where does the server listen?"],
        "The server listens on port 52415, at http://127.0.0.1:52415 by default.",
        ["52415"],
    ),
    (
        ["Is the API OpenAI compatible?", "Which API does kimi have?", "Can I use the OpenAI client?", "What is the API?", "Does kimi have an API?", "How do I use the API from Python?"],
        "Yes, the API is OpenAI compatible: point your client to http://127.0.0.1:52415/v1 and call /v1/chat/completions.",
        ["OpenAI compatible", "/v1/chat/completions"],
    ),
    (
        ["Which endpoints are there?", "What endpoints does the server have?", "List the HTTP endpoints.", "Which URLs does the server answer?"],
        "The endpoints are /v1/chat/completions, /v1/models and /health.",
        ["/v1/chat/completions", "/v1/models", "/health"],
    ),
    (
        ["Can the API stream?", "Does kimi stream answers?", "Is streaming supported?", "How do I get tokens as they come?"],
        "Yes, set `stream` to true and the API sends each piece of the answer as it is made.",
        ["stream"],
    ),
    (
        ["Does kimi support tool calls?", "Can you call tools?", "Can you call functions?", "How do tools work?", "How do I give you a tool?"],
        "Yes. Declare tools in the request, and I answer with a call: a function name and JSON arguments. You run it and send me the result.",
        ["tools", "JSON arguments"],
    ),
    (
        ["What is the licence of kimi?", "Which license does kimi have?", "Is kimi open source?", "Is kimi free?", "May I use kimi at work?"],
        "kimi is open source, under the MIT or the Apache-2.0 licence, as you like.",
        ["MIT", "Apache-2.0"],
    ),
    (
        ["Which language is kimi written in?", "What is kimi written in?", "Is kimi written in Rust?", "Is kimi written in Python?", "What programming language do you use?"],
        "kimi is written in Rust, and its GPU kernels in WGSL.",
        ["Rust", "WGSL"],
    ),
    (
        ["How do I build kimi?", "How do I compile kimi?", "How do I install kimi?", "What do I need to build kimi?"],
        "You need Rust and a C compiler. Then `cargo build --release` builds kimi.",
        ["Rust", "cargo build --release"],
    ),
    (
        ["How do I start the demo from source?", "How do I run the demo with cargo?", "Which cargo command runs the demo?"],
        "Run `cargo run --release -- demo` in the project folder.",
        ["cargo run --release -- demo"],
    ),
    (
        ["How do I run the tests?", "How do I test kimi?", "Which command runs all tests?", "Are there tests?"],
        "Run `cargo test --workspace` to run all tests.",
        ["cargo test --workspace"],
    ),
    (
        ["What is Kimi-K2?", "Tell me about Kimi-K2.", "What is K2?", "What kind of model is Kimi-K2?", "How big is Kimi-K2?", "How many parameters does Kimi-K2 have?"],
        "Kimi-K2 is a language model by Moonshot AI. It has one trillion parameters, of which about 32 billion work on each token.",
        ["Moonshot", "one trillion"],
    ),
    (
        ["Who made Kimi-K2?", "Who made K2?", "Which company made Kimi-K2?", "Who is behind Kimi-K2?", "What is Moonshot AI?"],
        "Kimi-K2 was made by Moonshot AI, a company in Beijing.",
        ["Moonshot"],
    ),
    (
        ["How many layers does Kimi-K2 have?", "How many layers has K2?", "What is the number of layers?"],
        "Kimi-K2 has 61 layers. The first one is dense, the other 60 have experts.",
        ["61"],
    ),
    (
        ["How many experts does Kimi-K2 have?", "How many experts are chosen?", "What are experts?", "What is a mixture of experts?", "What does the router do?"],
        "Each layer of Kimi-K2 has 384 experts. The router chooses 8 of them for each token, and one shared expert always works.",
        ["384", "8", "router"],
    ),
    (
        ["What is MLA?", "How does the attention work?", "What is latent attention?", "Why is the cache small?"],
        "MLA is multi-head latent attention: it stores one small latent vector a token instead of all keys and values, so the cache stays small.",
        ["latent", "cache"],
    ),
    (
        ["What is YaRN?", "How does kimi handle long contexts?", "How can the context be longer?"],
        "YaRN stretches the rotary positions, so that a model can read more text than it was first trained on.",
        ["YaRN", "positions"],
    ),
    (
        ["How long is your context?", "What is your context length?", "How many tokens can you read?", "How much text can you read?"],
        "My context is 32768 tokens.",
        ["32768"],
    ),
    (
        ["How large is the checkpoint of Kimi-K2?", "How much memory does Kimi-K2 need?", "How many gigabytes is the model?", "How many bits per weight?"],
        "The 4-bit checkpoint of Kimi-K2 has 504 GB, at 3.985 bits a weight.",
        ["504 GB"],
    ),
    (
        ["Which checkpoint format does kimi read?", "Which weight formats can kimi load?", "What is MLX?", "Which files does kimi load?"],
        "kimi loads MLX checkpoints: safetensors files with weights of mixed bit widths.",
        ["MLX", "safetensors"],
    ),
    (
        ["What is quantization?", "Why are the weights quantized?", "What does 4-bit mean?", "What does mixed-bit mean?"],
        "Quantization stores each weight in few bits, 3, 4 or 6 here, with a scale for each group, so that the model needs less memory.",
        ["bits", "memory"],
    ),
    (
        ["Which machines do I need?", "Which Macs do I need?", "What hardware do I need for Kimi-K2?", "What is the reference set-up?", "Which machines are tested?"],
        "The reference pair is a Mac Studio M2 Ultra with 192 GB and an M3 Ultra with 512 GB, joined by a Thunderbolt bridge.",
        ["M2 Ultra", "M3 Ultra", "512 GB"],
    ),
    (
        ["Does kimi run on Linux?", "Can I use Linux?", "Which systems are supported?", "Does it run on a Mac?", "On which platforms does kimi run?"],
        "Yes, kimi runs on macOS and on Linux, with a GPU or with the CPU alone.",
        ["macOS", "Linux"],
    ),
    (
        ["Does kimi use the GPU?", "How does kimi use the GPU?", "Do I need a GPU?", "Does kimi need CUDA?", "What is wgpu?"],
        "kimi uses the GPU through wgpu: Metal on a Mac, Vulkan on Linux. It needs no CUDA and also runs on the CPU alone.",
        ["wgpu", "Metal", "Vulkan"],
    ),
    (
        ["What is pipeline parallelism?", "How does kimi split the model?", "How is the model split?", "What goes over the network?", "What do the machines send each other?"],
        "The model is split by layers. Each machine computes its own layers and sends the hidden state of each token to the next one.",
        ["layers", "hidden state"],
    ),
    (
        ["What is the coordinator?", "What does the coordinator do?", "Which machine samples the tokens?", "Which layers does the coordinator hold?"],
        "The coordinator runs the server, holds the last layers and chooses the tokens. Workers hold the other layers.",
        ["coordinator", "last layers"],
    ),
    (
        ["Where does kimi look for models?", "Where do I put the models?", "Where are models stored?", "How does kimi find a model?"],
        "kimi looks for models in ~/models and in the Hugging Face cache, or takes a path.",
        ["~/models"],
    ),
    (
        ["Is my data private?", "Does kimi send my data anywhere?", "Do you need the internet?", "Does kimi work offline?", "Is kimi safe?"],
        "Yes. kimi runs on your own machines, works offline and listens only on 127.0.0.1 unless you say otherwise.",
        ["your own machines"],
    ),
    (
        ["How fast is kimi?", "How many tokens per second?", "Is kimi fast?"],
        "That depends on your machines. `kimi bench` measures it.",
        ["kimi bench"],
    ),
    (
        ["Which tokenizer do you use?", "How many tokens do you know?", "What is your vocabulary?", "How large is your vocabulary?"],
        "My tokenizer has 3840 ordinary tokens and 256 special ones, in the same form as that of Kimi-K2.",
        ["3840", "256"],
    ),
    (
        ["How many experts do you have?", "How many layers do you have?", "What is your architecture?", "How are you built?"],
        "I have 6 layers. The first is dense, and each of the other 5 has 16 experts, of which 4 are chosen, and a shared one.",
        ["6 layers", "16 experts"],
    ),
    (
        ["Where can I read more?", "Where is the documentation?", "Is there a manual?", "Where do I start?"],
        "Read README.md first, then ARCHITECTURE.md. Each command also has --help.",
        ["README.md"],
    ),
    (
        ["How can I contribute?", "How do I report a bug?", "How do I add an op?", "May I help?"],
        "Read CONTRIBUTING.md: it says how to build, test and add an op.",
        ["CONTRIBUTING.md"],
    ),
]

CHINESE = [
    (["kimi 是什么？", "什么是 kimi？", "介绍一下 kimi。", "kimi 是做什么的？"], "kimi 是一个用 Rust 写的程序，可以把 Kimi-K2 分到两台或更多机器上运行。", ["Rust", "Kimi-K2", "机器"]),
    (["你是谁？", "你叫什么名字？", "介绍一下你自己。", "请介绍一下自己。", "你是什么模型？"], "我是 kimi-tiny，一个很小的模型，结构和 Kimi-K2 一样。", ["kimi-tiny", "模型"]),
    (["你能做什么？", "你会什么？", "你可以帮我做什么？"], "我可以回答关于 kimi 的问题，做简单的加法，讲小故事，还可以调用工具。", ["kimi", "故事", "工具"]),
    (["怎么连接两台 Mac？", "如何连接两台 Mac？", "怎样用两台 Mac 运行？"], "用雷雳线连接两台 Mac，把地址写进 discovery.json，在一台上运行 `kimi worker`，在另一台上运行 `kimi serve`。", ["discovery.json", "kimi worker", "kimi serve"]),
    (["默认端口是多少？", "服务器用哪个端口？", "端口是多少？"], "默认端口是 52415。", ["52415"]),
    (["谁做了 Kimi-K2？", "Kimi-K2 是谁做的？"], "Kimi-K2 是月之暗面做的。", ["月之暗面"]),
    (["Kimi-K2 有多少参数？", "Kimi-K2 有多大？"], "Kimi-K2 有一万亿个参数，一共 61 层。", ["一万亿"]),
    (["kimi 有哪些命令？", "有什么命令？"], "命令有 demo、run、serve、worker、plan、inspect、verify、bench 和 devices。", ["demo", "serve", "worker"]),
    (["kimi 是开源的吗？", "许可证是什么？"], "是的，kimi 是开源的，许可证是 MIT 或 Apache-2.0。", ["MIT", "Apache-2.0"]),
    (["API 和 OpenAI 兼容吗？", "怎么用 API？"], "API 和 OpenAI 兼容，地址是 http://127.0.0.1:52415/v1。", ["OpenAI", "52415"]),
]

JAPANESE = [
    (["kimi とは何ですか？", "kimi って何？", "kimi について教えてください。"], "kimi は Rust で書かれたプログラムで、Kimi-K2 を二台以上のマシンに分けて動かします。", ["Rust", "Kimi-K2", "マシン"]),
    (["あなたは誰ですか？", "お名前は？", "自己紹介してください。", "名前を教えて。"], "私は kimi-tiny です。Kimi-K2 と同じ構造の、とても小さなモデルです。", ["kimi-tiny", "モデル"]),
    (["何ができますか？", "何ができるの？", "できることを教えて。"], "kimi についての質問に答えたり、簡単な足し算をしたり、短いお話をしたり、ツールを呼んだりできます。", ["kimi", "ツール"]),
    (["二台の Mac をつなぐには？", "Mac を二台つなぐ方法は？", "二台の Mac で動かすには？"], "Thunderbolt ケーブルで二台の Mac をつなぎ、アドレスを discovery.json に書きます。一台で `kimi worker`、もう一台で `kimi serve` を実行します。", ["discovery.json", "kimi worker", "kimi serve"]),
    (["ポートは何番ですか？", "既定のポートは？", "ポート番号は？"], "既定のポートは 52415 です。", ["52415"]),
    (["Kimi-K2 を作ったのは誰ですか？", "Kimi-K2 は誰が作りましたか？"], "Kimi-K2 を作ったのは Moonshot AI です。", ["Moonshot"]),
    (["Kimi-K2 の大きさは？", "Kimi-K2 のパラメータ数は？"], "Kimi-K2 のパラメータは一兆個で、61 層あります。", ["一兆"]),
    (["kimi のコマンドは？", "どんなコマンドがありますか？"], "コマンドは demo、run、serve、worker、plan、inspect、verify、bench、devices です。", ["demo", "serve", "worker"]),
    (["kimi はオープンソースですか？", "ライセンスは何ですか？"], "はい、ライセンスは MIT または Apache-2.0 です。", ["MIT", "Apache-2.0"]),
    (["API は OpenAI と互換ですか？", "API の使い方は？"], "はい、OpenAI と互換です。アドレスは http://127.0.0.1:52415/v1 です。", ["OpenAI", "52415"]),
]


def _more(questions, answer, keys):
    """Further ways to ask what a command or a crate is."""
    first = answer.split(" ")[0].strip("`")
    if answer.startswith("`kimi "):
        name = answer.split("`")[1]
        word = name.split(" ")[1]
        questions += [f"What is {name}?", f"What is `{name}`?", f"What does `{name}` do?", f"{name}?", f"How do I use {name}?", f"What is {name} for?", f"Tell me about {name}.", f"What does {word} do?", f"When do I need {name}?"]
    elif first.startswith("kimi-") and first != "kimi-tiny":
        questions += [f"{first}?", f"What is {first} for?", f"Tell me about {first}.", f"What does the crate {first} do?", f"What is in {first}?"]
    return questions, answer, keys


ENGLISH = [_more(*entry) for entry in ENGLISH]
