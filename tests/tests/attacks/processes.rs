//! Signals, environments and limits of a server's process.

use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kimi_tests::api::PATIENCE;
use kimi_tests::binary::kimi;

use super::serve::{Serve, rest, same, serve};
use super::table::Table;

#[test]
fn processes() {
    let good = Serve::start(&mut serve("kimi-tiny"));
    let mut table = Table::new("processes");
    let mut case = |name: &str, outcome| table.case(name, good.addr, outcome);

    for signal in ["-TERM", "-INT"] {
        let mut server = Serve::start(&mut serve("kimi-tiny"));
        let outcome = server.chat().and_then(|()| {
            server.signal(signal);
            same(&server.end()?.code(), &Some(0))
        });
        case(&format!("{signal} while idle"), outcome);

        let mut server = Serve::start(&mut serve("kimi-tiny"));
        let stream = server.stream();
        server.signal(signal);
        let refused = || -> Result<(), String> {
            // No new connection while the last answer is given.
            let begun = Instant::now();
            while TcpStream::connect(server.addr).is_ok_and(|s| s.set_nodelay(true).is_ok()) {
                if begun.elapsed() > PATIENCE {
                    return Err("it still accepts connections".to_owned());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        };
        let refused = refused();
        let text = rest(stream);
        let whole = same(&text.contains("data: [DONE]"), &true);
        let code = server.end().and_then(|status| same(&status.code(), &Some(0)));
        case(&format!("{signal} in a stream: no new connection"), refused);
        case(&format!("{signal} in a stream: it ends whole"), whole);
        case(&format!("{signal} in a stream: success"), code);
    }

    let mut server = Serve::start(&mut serve("kimi-tiny"));
    let stream = server.stream();
    server.signal("-INT");
    std::thread::sleep(Duration::from_millis(100));
    server.signal("-INT");
    let code = server.end().map(|status| status.code());
    // The stream may have come to its end between the two.
    let ended = rest(stream).contains("[DONE]");
    case("-INT twice", code.and_then(|code| same(&(code == Some(130) || (ended && code == Some(0))), &true)));

    let mut server = Serve::start(&mut serve("kimi-tiny"));
    let stream = server.stream();
    server.signal("-KILL");
    same(&server.end().map(|s| s.signal()), &Ok(Some(9))).unwrap();
    let cut = same(&rest(stream).contains("[DONE]"), &false);
    case("-KILL in a stream", cut);
    let port = server.addr.port().to_string();
    let mut again = kimi();
    again.args(["serve", "kimi-tiny", "--port", &port, "--json", "--backend", "cpu"]).stdin(Stdio::null());
    let again = Serve::start(&mut again);
    case("a start at the same port after it", again.chat());

    let server = Serve::start(&mut serve("kimi-tiny"));
    for signal in ["-PIPE", "-CHLD", "-WINCH"] {
        server.signal(signal);
        case(signal, server.chat());
    }
    let stream = server.stream();
    server.signal("-STOP");
    std::thread::sleep(Duration::from_millis(200));
    server.signal("-CONT");
    case("-STOP and -CONT in a stream", same(&rest(stream).contains("[DONE]"), &true));

    for (name, key, value) in [
        ("no home", "HOME", "/nonexistent"),
        ("an empty home", "HOME", ""),
        ("no folder for temporary files", "TMPDIR", "/nonexistent"),
        ("a wrong log level", "KIMI_LOG", "what="),
        ("another language", "LC_ALL", "xx_YY.nonsense"),
        ("few connections", "KIMI_MAX_CONNECTIONS", "2"),
        ("little memory for bodies", "KIMI_BODY_MEMORY", "8"),
    ] {
        case(name, Serve::start(serve("kimi-tiny").env(key, value)).chat());
    }
    for (key, value) in
        [("KIMI_MAX_CONNECTIONS", "0"), ("KIMI_BODY_MEMORY", "much"), ("KIMI_BACKEND", "abacus")]
    {
        let output = kimi().args(["serve", "kimi-tiny", "--port", "0"]).env(key, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).contains(value);
        case(&format!("{key}={value}"), same(&(output.status.code(), said), &(Some(2), true)));
    }

    // Few open files: connections wait for each other, and all are answered in the end.
    let program = kimi().get_program().to_str().unwrap().to_owned();
    let line = format!("ulimit -n 40 && exec {program} serve kimi-tiny --port 0 --json --backend cpu");
    let few = Serve::start(Command::new("sh").args(["-c", &line]).stdin(Stdio::null()));
    let quiet: Vec<_> = (0..100).filter_map(|_| TcpStream::connect(few.addr).ok()).collect();
    drop(quiet);
    case("few open files", few.chat());

    let busy = Serve::start(&mut serve("kimi-tiny"));
    let port = busy.addr.port().to_string();
    let output = kimi().args(["serve", "kimi-tiny", "--port", &port]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).contains(&port);
    case("a port in use", same(&(output.status.code(), said), &(Some(1), true)));
    table.end();
}
