//! What a peer without the key sends, in pieces, to a coordinator and a worker who ask for it: neither makes a link. The first
//! byte says to whom it is sent and how it is cut.
#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use kimi_net::{ClusterKey, Config, Coordinator, Trust, Worker};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};

/// The same key in every run, so that an input that fails does so again.
const KEY: &str = "kimi-key-1:f794d12634aa155e5784b37a0163bb4180fe6af6c2ecad1f147ed8722a6c36c5ac5b6187";

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_current_thread().enable_all().build().expect("a runtime"))
}

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    let trust = Trust::Key(KEY.parse::<ClusterKey>().expect("a key"));
    let config = Config { handshake_timeout: Duration::from_secs(10), ..Config::new("fuzz") };
    let step = usize::from(first >> 1) + 1;
    runtime().block_on(async {
        let (ours, theirs) = duplex(1 << 16);
        let peer = async {
            let (mut read, mut write) = tokio::io::split(ours);
            let send = async {
                for piece in rest.chunks(step) {
                    if write.write_all(piece).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
                // The end of the stream: nobody waits for more.
                let _ = write.shutdown().await;
            };
            let mut answer = Vec::new();
            let receive = async { read.read_to_end(&mut answer).await };
            let ((), _) = tokio::join!(send, receive);
        };
        let linked = match first & 1 {
            0 => tokio::join!(Worker::handshake(theirs, &trust, config), peer).0.is_ok(),
            _ => tokio::join!(Coordinator::handshake(theirs, &trust, config), peer).0.is_ok(),
        };
        assert!(!linked, "a link without the key");
    });
});
