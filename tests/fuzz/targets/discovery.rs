//! `discovery.json` of any bytes.
#![no_main]

use std::path::Path;

use kimi_server::discovery::Discovery;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    match Discovery::from_bytes(Path::new("discovery.json"), input) {
        Ok(discovery) => {
            assert!(!discovery.peers.is_empty());
            let _ = discovery.doubts();
            for peer in &discovery.peers {
                let _ = peer.wanted();
                assert!(discovery.peer(&peer.id).is_ok());
            }
        }
        Err(error) => assert!(error.to_string().contains("discovery.json")),
    }
});
