//! The driver: over real loopback sockets, and over an in-memory stream where a peer must misbehave.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

mod common;

use std::{sync::mpsc, time::Duration};

use common::*;
use kimi_net::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const LOCAL: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

async fn listener() -> Listener {
    Listener::bind(LOCAL.into(), trust(), Tuning::default()).await.unwrap()
}

async fn link_to(listener: &Listener) -> Coordinator {
    let addr = listener.local_addr().unwrap();
    connect(addr, &trust(), &Tuning::default(), Config::new("c")).await.unwrap()
}

/// A worker that returns its input until the link ends.
fn echo(mut worker: Worker) -> JoinHandle<LinkError> {
    let sender = worker.sender();
    tokio::spawn(async move {
        loop {
            let sent = match worker.next().await {
                Ok(Event::Assigned(_)) => {
                    for loaded_bytes in [1, 2] {
                        sender
                            .progress(LoadProgress { loaded_bytes, total_bytes: 2, kernels: None })
                            .unwrap();
                    }
                    sender.ready(ready())
                }
                Ok(Event::Forward(header, _)) if header.sequences[0].id == 13 => {
                    let subject = Subject::Step(header.step);
                    sender.fail(ErrorReport::new(ErrorCode::StepFailed, subject, "unlucky"))
                }
                Ok(Event::Forward(header, payload)) => {
                    sender.result(result(header.step, header.rows, header.cols), payload)
                }
                Ok(_) => Ok(()),
                Err(reason) => return reason,
            };
            if let Err(reason) = sent {
                return reason;
            }
        }
    })
}

async fn serving() -> (Coordinator, JoinHandle<LinkError>) {
    let listener = listener().await;
    let accept = async { listener.accept().await.unwrap().handshake(Config::new("w")).await.unwrap() };
    let (link, worker) = tokio::join!(link_to(&listener), accept);
    let worker = echo(worker);
    link.assign(assign(), |_| ()).await.unwrap();
    (link, worker)
}

#[tokio::test]
async fn fifteen_megabytes_over_loopback() {
    let (link, worker) = serving().await;
    let input = hidden(512, 7168);
    let reply = link.forward(forward(1, 512, 7168), input.clone()).await.unwrap();
    assert!(reply.payload == input);
    assert_eq!(reply.payload.as_ptr() as usize % PAYLOAD_ALIGNMENT, 0);
    assert_eq!(reply.header, result(1, 512, 7168));
    let stats = link.stats();
    let size = input.len() as u64;
    assert!(stats.bytes_sent > size && stats.bytes_sent < size + 2000, "{stats:?}");
    assert!(stats.bytes_received > size && stats.bytes_received < size + 2000, "{stats:?}");
    assert_eq!((stats.steps, stats.last_step), (1, Some(reply.timing)));
    assert!(stats.min_round_trip.is_some(), "{stats:?}");
    assert!(link.socket().unwrap().nodelay);
    link.close("done").await;
    assert_eq!(worker.await.unwrap(), LinkError::PeerLeft { reason: "done".into() });
}

#[tokio::test]
async fn loading_is_reported() {
    let listener = listener().await;
    let accept = async { listener.accept().await.unwrap().handshake(Config::new("w")).await.unwrap() };
    let (link, worker) = tokio::join!(link_to(&listener), accept);
    assert_eq!((link.peer().node_id.as_str(), worker.peer().node_id.as_str()), ("w", "c"));
    echo(worker);
    let (sender, reports) = mpsc::channel();
    let report = move |progress: LoadProgress| sender.send(progress.loaded_bytes).unwrap();
    assert_eq!(link.assign(assign(), report).await, Ok(ready()));
    assert_eq!(reports.iter().collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn steps_in_flight_are_answered_in_order() {
    let (link, _worker) = serving().await;
    let input = |step| Bytes::from(vec![step as u8; 400]);
    let (sender, answers) = mpsc::channel();
    // More than may be in flight: the others wait on this side.
    for step in 1..=200 {
        let sender = sender.clone();
        let done = move |reply: Result<Reply, LinkError>| sender.send(reply.unwrap()).unwrap();
        link.submit(forward(step, 1, 100), input(step), done);
    }
    // Behind them all.
    assert_eq!(link.forward(forward(300, 1, 100), input(300)).await.unwrap().payload, input(300));
    drop(sender);
    let answers: Vec<_> = answers.iter().map(|reply| (reply.header.step, reply.payload)).collect();
    assert_eq!(answers, (1..=200).map(|step| (step, input(step))).collect::<Vec<_>>());
}

#[tokio::test]
async fn more_prompts_than_a_worker_has_memory_for_wait_on_this_side() {
    let (link, _worker) = serving().await;
    let (sender, answers) = mpsc::channel();
    let input = hidden(512, 7168);
    for step in 1..=9 {
        let sender = sender.clone();
        let done = move |reply: Result<Reply, LinkError>| sender.send(reply.unwrap().header.step).unwrap();
        link.submit(forward(step, 512, 7168), input.clone(), done);
    }
    link.forward(forward(10, 1, 4), hidden(1, 4)).await.unwrap();
    drop(sender);
    assert_eq!(answers.iter().collect::<Vec<_>>(), (1..=9).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_step_that_must_not_be_sent_does_not_hold_up_the_others() {
    let (link, _worker) = serving().await;
    let (sender, answers) = mpsc::channel();
    for step in [1, 2, 2, 3] {
        let sender = sender.clone();
        let done = move |reply: Result<Reply, LinkError>| sender.send(reply.map(|r| r.header.step)).unwrap();
        link.submit(forward(step, 1, 4), hidden(1, 4), done);
    }
    drop(sender);
    link.forward(forward(4, 1, 4), hidden(1, 4)).await.unwrap();
    let mut answers: Vec<_> = answers.iter().collect();
    assert_eq!(answers.remove(0), Err(ProtocolError::StepNotRising { found: 2, last: 2 }.into()));
    assert_eq!(answers, [Ok(1), Ok(2), Ok(3)]);
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_ends_the_link() {
    let listener = listener().await;
    let accept = async { listener.accept().await.unwrap().handshake(Config::new("w")).await.unwrap() };
    let (link, mut worker) = tokio::join!(link_to(&listener), accept);
    worker.sender().ready(ready()).unwrap();
    let error = worker.next().await.unwrap_err();
    assert!(error.to_string().starts_with("Ready from the Worker is out of order"), "{error}");
    assert!(matches!(link.closed().await, LinkError::Peer(_)));
}

#[tokio::test]
async fn a_forward_that_is_dropped_leaves_the_link_in_step() {
    let (link, _worker) = serving().await;
    for step in 1..50 {
        let input = Bytes::from(vec![step as u8; 1 << 20]);
        let wait = Duration::from_micros(step * 37 % 800);
        // Dropped at some point between the first poll and the answer, or not at all.
        if let Ok(reply) =
            tokio::time::timeout(wait, link.forward(forward(step, 256, 1024), input.clone())).await
        {
            assert_eq!(reply.unwrap().payload, input);
        }
    }
    let input = hidden(3, 3);
    assert_eq!(link.forward(forward(99, 3, 3), input.clone()).await.unwrap().payload, input);
}

#[tokio::test]
async fn a_step_that_fails_leaves_the_link_open() {
    let (link, _worker) = serving().await;
    let mut unlucky = forward(1, 1, 4);
    unlucky.sequences[0].id = 13;
    let error = link.forward(unlucky, hidden(1, 4)).await.unwrap_err();
    let expected = ErrorReport::new(ErrorCode::StepFailed, Subject::Step(1), "unlucky");
    assert_eq!(error, LinkError::Failed(expected));
    let wrong = link.forward(forward(2, 2, 4), hidden(1, 4)).await.unwrap_err();
    assert!(matches!(wrong, LinkError::Frame(FrameError::Invalid { .. })), "{wrong}");
    assert_eq!(link.closed_reason(), None);
    assert!(link.forward(forward(2, 1, 4), hidden(1, 4)).await.is_ok());
}

#[tokio::test]
async fn a_silent_peer_is_dropped_and_keeps_nobody_waiting() {
    let listener = listener().await;
    let addr = listener.local_addr().unwrap();
    let mut silent = TcpStream::connect(addr).await.unwrap();
    let short = Config { handshake_timeout: Duration::from_millis(200), ..Config::new("w") };
    let waiting = tokio::spawn(listener.accept().await.unwrap().handshake(short.clone()));
    let accept = async { listener.accept().await.unwrap().handshake(Config::new("w")).await.unwrap() };
    let (_link, _worker) = tokio::join!(link_to(&listener), accept);
    let error = waiting.await.unwrap().err().unwrap();
    assert_eq!(error, LinkError::HandshakeTimeout { after: short.handshake_timeout });
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);

    // The other way round: something listens and never answers.
    let mute = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let error = connect(mute.local_addr().unwrap(), &trust(), &Tuning::default(), short.clone()).await.err();
    assert_eq!(error, Some(LinkError::HandshakeTimeout { after: short.handshake_timeout }));
}

#[tokio::test]
async fn http_by_mistake_in_both_directions() {
    for (trust, expected) in [
        (Trust::Insecure, FrameError::NotKimi { found: *b"GET " }.into()),
        (trust(), LinkError::NotEncrypted),
    ] {
        let listener = Listener::bind(LOCAL.into(), trust, Tuning::default()).await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let error = listener.accept().await.unwrap().handshake(Config::new("w")).await.err();
        assert_eq!(error, Some(expected));
    }

    let (server, stream) = duplex(1000);
    let (mut read, mut write) = tokio::io::split(server);
    let answer = async {
        read.read_u8().await.unwrap();
        write.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    };
    let (link, ()) = tokio::join!(Coordinator::handshake(stream, &Trust::Insecure, Config::new("c")), answer);
    assert_eq!(link.err(), Some(FrameError::NotKimi { found: *b"HTTP" }.into()));
}

#[tokio::test]
async fn a_refusal_reaches_the_other_side() {
    let listener = listener().await;
    let speaking = |v| Config { versions: Versions { min: v, max: v }, ..Config::new("x") };
    let addr = listener.local_addr().unwrap();
    let (tuning, trust) = (Tuning::default(), trust());
    let accept = async { listener.accept().await.unwrap().handshake(speaking(8)).await.err() };
    let (link, worker) = tokio::join!(connect(addr, &trust, &tuning, speaking(7)), accept);
    assert!(matches!(worker, Some(LinkError::Protocol(ProtocolError::VersionMismatch { .. }))), "{worker:?}");
    let Err(LinkError::Peer(report)) = link else { panic!("no refusal") };
    assert_eq!(report.code, ErrorCode::VersionMismatch);
}

/// A proxy in front of `listener` that passes `limit` bytes of the worker's on and then drops the connection.
async fn cut_after(listener: &Listener, limit: u64) -> std::net::SocketAddr {
    let proxy = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (addr, target) = (proxy.local_addr().unwrap(), listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (client, _) = proxy.accept().await.unwrap();
        let (mut up_in, mut down_out) = client.into_split();
        let (down_in, mut up_out) = TcpStream::connect(target).await.unwrap().into_split();
        let mut down_in = down_in.take(limit);
        tokio::select! {
            _ = tokio::io::copy(&mut up_in, &mut up_out) => {}
            _ = tokio::io::copy(&mut down_in, &mut down_out) => {}
        }
    });
    addr
}

#[tokio::test]
async fn a_connection_lost_within_a_payload_fails_every_step() {
    let listener = listener().await;
    let addr = cut_after(&listener, 500_000).await;
    let accept = async { listener.accept().await.unwrap().handshake(Config::new("w")).await.unwrap() };
    let (tuning, trust) = (Tuning::default(), trust());
    let (link, worker) = tokio::join!(connect(addr, &trust, &tuning, Config::new("c")), accept);
    let (link, worker) = (link.unwrap(), echo(worker));
    link.assign(assign(), |_| ()).await.unwrap();
    let (sender, answers) = tokio::sync::mpsc::unbounded_channel();
    for step in 1..100 {
        let sender = sender.clone();
        let done = move |reply| drop(sender.send(reply));
        link.submit(forward(step, 256, 1024), hidden(256, 1024), done);
    }
    drop(sender);
    let mut answers = answers;
    let mut told = 0;
    while let Some(answer) = answers.recv().await {
        told += 1;
        match answer.unwrap_err() {
            LinkError::Lost { at } => assert!(at.starts_with("in the payload of a Result frame"), "{at}"),
            LinkError::Io { .. } => {} // a reset instead of an end
            other => panic!("{other}"),
        }
    }
    assert_eq!(told, 99);
    assert!(link.closed_reason().is_some());
    let late = link.forward(forward(9, 1, 4), hidden(1, 4)).await.unwrap_err();
    assert_eq!(Some(late), link.closed_reason());
    let reason = worker.await.unwrap();
    assert!(matches!(reason, LinkError::Lost { .. } | LinkError::Io { .. }), "{reason}");
}

#[test]
fn a_step_is_answered_when_the_runtime_ends() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (link, _worker) = runtime.block_on(serving());
    let (sender, answers) = mpsc::channel();
    let submit = |sender: mpsc::Sender<_>| {
        link.submit(forward(1, 1, 4), hidden(1, 4), move |reply| sender.send(reply).unwrap());
    };
    submit(sender.clone());
    drop(runtime);
    submit(sender);
    assert_eq!(answers.iter().collect::<Vec<_>>(), [Err(LinkError::Closed), Err(LinkError::Closed)]);
}

#[tokio::test]
async fn dropping_a_handle_says_goodbye() {
    let (link, worker) = serving().await;
    let (sender, answer) = tokio::sync::oneshot::channel();
    link.submit(forward(1, 1, 4), hidden(1, 4), move |reply| sender.send(reply).unwrap());
    drop(link);
    assert_eq!(answer.await, Ok(Err(LinkError::Closed)));
    assert!(matches!(worker.await.unwrap(), LinkError::PeerLeft { .. }));

    let listener = listener().await;
    let accept = async { listener.accept().await.unwrap().handshake(Config::new("w")).await.unwrap() };
    let (link, worker) = tokio::join!(link_to(&listener), accept);
    let assigning = link.assign(assign(), |_| ());
    drop(worker);
    assert!(matches!(assigning.await, Err(LinkError::PeerLeft { .. })));
}

#[tokio::test]
async fn a_worker_that_takes_no_events_is_closed() {
    let listener = listener().await;
    let accept = async { listener.accept().await.unwrap().handshake(Config::new("w")).await.unwrap() };
    let (link, mut worker) = tokio::join!(link_to(&listener), accept);
    let ready_to_serve = async {
        assert!(matches!(worker.next().await, Ok(Event::Assigned(_))));
        worker.sender().ready(ready()).unwrap();
    };
    let (assigned, ()) = tokio::join!(link.assign(assign(), |_| ()), ready_to_serve);
    assigned.unwrap();
    let error = loop {
        if let Err(error) = link.set_active(true) {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert!(matches!(&error, LinkError::Peer(report) if report.code == ErrorCode::Overloaded), "{error}");
}

#[tokio::test]
async fn a_port_in_use_and_a_port_that_nobody_listens_on() {
    let first = listener().await;
    let addr = first.local_addr().unwrap();
    let error = Listener::bind(addr, trust(), Tuning::default()).await.err().unwrap();
    assert!(error.to_string().starts_with(&format!("cannot listen on {addr}: ")), "{error}");
    drop(first);
    let error = connect(addr, &trust(), &Tuning::default(), Config::new("c")).await.err().unwrap();
    assert!(error.to_string().starts_with(&format!("cannot connect to {addr}: ")), "{error}");
}
