//! The control API over real sockets, with a stand-in for the node behind it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use serde_json::{Value, json};
use smalti_node::api::{ApiServer, ApiState, document};
use smalti_node::client::{ApiAddress, Client, ClientError};
use smalti_node::cluster_file::ClusterFile;
use smalti_node::control::{
    Control, ControlSlot, CreateVolume, ErrorKind, RecoverKeys, RecoveryReport, ShareLine,
    StatusReport, VolumeDetail,
};
use smalti_storage::ids::{ClusterId, VolumeId};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;
use support::FakeControl;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use zeroize::Zeroizing;

const LIMIT: Duration = Duration::from_secs(20);

struct Server {
    dir: TempDir,
    tcp: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterId(Uuid::from_u128(5));
        let control = FakeControl::new(cluster, 3, &dir.path().join("volumes.json"));
        Self::start_with(dir, Arc::new(control)).await
    }

    async fn start_with(dir: TempDir, control: Arc<dyn Control>) -> Self {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let any = ([127, 0, 0, 1], 0).into();
        let server = ApiServer::bind(any, &dir.path().join("api.sock")).await.unwrap();
        let tcp = server.tcp_address().unwrap();
        let state = ApiState::new(control, Some(dir.path().to_owned()), tasks.clone());
        server.start(state, &tasks, &stop);
        Self { dir, tcp, stop, tasks }
    }

    fn clients(&self) -> [Client; 2] {
        let unix = ApiAddress::Unix(self.dir.path().join("api.sock"));
        [Client::new(unix), Client::new(ApiAddress::Tcp(self.tcp.to_string()))]
    }

    /// Sends bytes as they are; gives the status and the body.
    async fn raw(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.tcp).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    async fn send(&self, line: &str, headers: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let (status, body) = self
            .raw(&format!(
                "{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\
                 content-length: {length}\r\n\r\n{body}"
            ))
            .await;
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    async fn post(&self, body: &str) -> (u16, Value) {
        self.send("POST /v1/volumes", "content-type: application/json\r\n", body).await
    }
}

fn request(name: &str) -> CreateVolume {
    CreateVolume {
        name: name.into(),
        size: 1 << 20,
        data: None,
        parity: None,
        shard_size: None,
        min_insync: None,
        read_mode: None,
    }
}

#[tokio::test]
async fn both_sockets_answer() {
    let server = Server::start().await;
    let socket = server.dir.path().join("api.sock");
    assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    for client in server.clients() {
        let report: StatusReport = client.get("/v1/status", LIMIT).await.unwrap();
        assert_eq!(report.nodes.len(), 3);
    }
}

#[tokio::test]
async fn a_passphrase_is_taken_over_the_unix_socket_only() {
    let server = Server::start().await;
    let [unix, tcp] = server.clients();
    let wish = |text: &str| json!({ "passphrase": text });
    let unlock = |client: Client, wish: Value| async move {
        client.post::<Value, Value>("/v1/keys/unlock", &wish, LIMIT).await
    };
    let right = wish("six random words");
    let error = unlock(tcp, right.clone()).await.unwrap_err().to_string();
    assert!(error.contains("over the node's Unix socket only"), "{error}");
    let body = right.to_string();
    let headers = "content-type: application/json\r\n";
    for line in ["POST /v1/keys/unlock", "POST /v1/keys/unloc%6b", "POST //v1/keys/unlock"] {
        let (status, answer) = server.send(line, headers, &body).await;
        assert!(matches!(status, 403 | 404), "{line}: {status} {answer}");
    }
    let answer = unlock(unix.clone(), right).await.unwrap();
    assert_eq!(answer, json!({ "was_locked": true }));
    let error = unlock(unix.clone(), wish("six random word")).await.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Invalid));
    // What is no passphrase is not told back.
    for wrong in
        [wish(&"x".repeat(1025)), wish(""), json!({ "passphrase": ["secret"] }), json!("secret")]
    {
        let error = unlock(unix.clone(), wrong).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("the body is") && !text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn status_has_the_fields_of_the_contract() {
    let server = Server::start().await;
    let [client, _] = server.clients();
    let _: VolumeDetail = client.post("/v1/volumes", &request("v"), LIMIT).await.unwrap();
    let status: Value = client.get("/v1/status", LIMIT).await.unwrap();
    assert_eq!(status["health"], "ok");
    let stores = json!([{"id": "00000000-0000-0000-0000-000000000002", "faults": 0}]);
    let node = json!({"name": "n2", "id": 2, "state": "up", "stores": stores});
    assert_eq!(status["nodes"][1], node);
    assert_eq!(status["raft"], json!({"leader": "n1", "term": 3}));
    assert_eq!(status["custody"], json!({"needed": 2, "reachable": 3, "total": 3}));
    let volume = status["volumes"][0].as_object().unwrap();
    for (field, value) in [
        ("name", json!("v")),
        ("health", json!("ok")),
        ("epoch", json!(1)),
        ("coordinator", Value::Null),
        ("rows_behind", json!(0)),
        ("data", json!(2)),
        ("parity", json!(1)),
    ] {
        assert_eq!(volume[field], value, "{field}");
    }
}

#[tokio::test]
async fn volumes_are_made_and_deleted_by_identity() {
    let server = Server::start().await;
    let empty = ClusterFile { nodes: vec![], volumes: vec![] };
    empty.write(server.dir.path()).unwrap();
    let listed = || ClusterFile::read(server.dir.path()).unwrap().unwrap().volumes;
    let [client, _] = server.clients();

    let made: VolumeDetail = client.post("/v1/volumes", &request("v"), LIMIT).await.unwrap();
    assert_eq!(listed(), ["v"]);
    let shown: VolumeDetail = client.get("/v1/volumes/v", LIMIT).await.unwrap();
    assert_eq!(shown, made);
    let again = client.post::<_, VolumeDetail>("/v1/volumes", &request("v"), LIMIT).await;
    assert_eq!(again.unwrap_err().kind(), Some(ErrorKind::Exists));

    let other = VolumeId(Uuid::from_u128(1));
    let refused = client.delete(&format!("/v1/volumes/v?id={other}"), LIMIT).await;
    assert_eq!(refused.unwrap_err().kind(), Some(ErrorKind::Conflict));
    assert_eq!(listed(), ["v"]);
    client.delete(&format!("/v1/volumes/v?id={}", made.volume.id), LIMIT).await.unwrap();
    assert_eq!(listed(), Vec::<String>::new());
    let gone = client.get::<VolumeDetail>("/v1/volumes/v", LIMIT).await;
    assert_eq!(gone.unwrap_err().kind(), Some(ErrorKind::NotFound));
}

#[tokio::test]
async fn wrong_requests_get_json_errors() {
    let server = Server::start().await;
    let (ok, _) = server.post(r#"{"name":"v","size":1048576}"#).await;
    assert_eq!(ok, 201);
    let large = format!(r#"{{"name":"{}","size":512}}"#, "x".repeat(100_000));
    for (status, kind, body) in [
        (400, "invalid", "{"),
        (422, "invalid", r#"{"name":"w"}"#),
        (422, "invalid", r#"{"name":"w","size":512,"colour":1}"#),
        (400, "invalid", r#"{"name":"w","size":0}"#),
        (400, "invalid", r#"{"name":"w","size":513}"#),
        (400, "invalid", r#"{"name":"-w","size":512}"#),
        (400, "invalid", r#"{"name":"w","size":512,"data":2}"#),
        (400, "invalid", r#"{"name":"w","size":512,"data":9,"parity":1}"#),
        (400, "invalid", r#"{"name":"w","size":512,"shard_size":5}"#),
        (409, "exists", r#"{"name":"v","size":512}"#),
        (413, "invalid", &large),
    ] {
        let (got, answer) = server.post(body).await;
        let short = &body[..body.len().min(60)];
        assert_eq!((got, &answer["error"]["kind"]), (status, &json!(kind)), "{short}: {answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{short}");
    }
    for (status, line) in [
        (404, "GET /nothing"),
        (404, "GET /v1/volumes/none"),
        (404, "GET /v1/volumes/a%2Fb"),
        (404, "GET /v1/volumes/%ff%fe"),
        (405, "PUT /v1/volumes"),
        (400, "DELETE /v1/volumes/v"),
        (400, "DELETE /v1/volumes/v?id=5"),
        (400, "DELETE /v1/volumes/v?id=00000000-0000-0000-0000-000000000001&force=1"),
        (409, "DELETE /v1/volumes/v?id=00000000-0000-0000-0000-000000000001"),
    ] {
        let (got, answer) = server.send(line, "", "").await;
        if line.contains("%ff") {
            assert!([400, 404].contains(&got), "{line}: {got} {answer}");
        } else {
            assert_eq!(got, status, "{line}: {answer}");
        }
        assert!(answer["error"]["kind"].is_string(), "{line}: {answer}");
    }
}

#[tokio::test]
async fn pages_of_foreign_names_are_kept_out() {
    let server = Server::start().await;
    let get = |host: &str| format!("GET /v1/status HTTP/1.1\r\n{host}connection: close\r\n\r\n");
    assert_eq!(server.raw(&get("host: evil.example\r\n")).await.0, 403);
    assert_eq!(server.raw(&get("")).await.0, 403);
    assert_eq!(server.raw(&get("host: 127.0.0.1:1\r\n")).await.0, 200);
    // What a form of a page can send without asking leave.
    let (status, _) =
        server.send("POST /v1/volumes", "content-type: text/plain\r\n", r#"{"name":"v"}"#).await;
    assert_eq!(status, 415);
}

#[tokio::test]
async fn endless_headers_end() {
    let server = Server::start().await;
    let request =
        format!("GET /v1/status HTTP/1.1\r\nhost: localhost\r\nx: {}", "y".repeat(40_000));
    let mut stream = TcpStream::connect(server.tcp).await.unwrap();
    // The server may close before it has read all of it.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(read.is_err() || answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"));
}

#[tokio::test]
async fn bodies_that_do_not_come_hold_nobody_up() {
    let server = Server::start().await;
    let head = "POST /v1/volumes HTTP/1.1\r\nhost: localhost\r\n\
                content-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    let mut waiting = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(server.tcp).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    let [unix, tcp] = server.clients();
    // The other socket has connections of its own, and these end.
    unix.get::<StatusReport>("/v1/status", LIMIT).await.unwrap();
    tcp.get::<StatusReport>("/v1/status", 2 * LIMIT).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(LIMIT, waiting[0].read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn the_document_describes_every_route() {
    let server = Server::start().await;
    let (status, served) = server.send("GET /openapi.json", "", "").await;
    assert_eq!(status, 200);
    assert_eq!(served, serde_json::to_value(document()).unwrap());
    let paths = served["paths"].as_object().unwrap();
    let mut operations: Vec<String> = paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
        })
        .collect();
    operations.sort();
    let expected = [
        "delete /v1/nodes/{name}",
        "delete /v1/volumes/{name}",
        "get /metrics",
        "get /v1/keys",
        "get /v1/keys/audit",
        "get /v1/keys/verify",
        "get /v1/nodes",
        "get /v1/status",
        "get /v1/volumes",
        "get /v1/volumes/{name}",
        "get /v1/volumes/{name}/data",
        "get /v1/volumes/{name}/image",
        "get /v1/what-if",
        "get /v1/why",
        "post /v1/custodians",
        "post /v1/keys/recover",
        "post /v1/keys/unlock",
        "post /v1/moves",
        "post /v1/nodes/{name}",
        "post /v1/nodes/{name}/replace",
        "post /v1/tokens",
        "post /v1/volumes",
        "post /v1/volumes/{name}/keys",
        "post /v1/volumes/{name}/keys/revoke",
        "post /v1/volumes/{name}/scrub",
    ];
    assert_eq!(operations, expected);
    let plain = |o: &&String| o.starts_with("get") && !o.contains('{') && !o.contains("what-if");
    for operation in operations.iter().filter(plain) {
        let line = operation.replacen("get", "GET", 1);
        assert_eq!(server.send(&line, "", "").await.0, 200, "{line}");
    }
    // Every reference leads somewhere.
    let text = served.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(served["components"]["schemas"][name].is_object(), "{name}");
    }
}

#[tokio::test]
async fn contents_come_in_pieces_and_as_a_whole() {
    let server = Server::start().await;
    server.post(r#"{"name":"v","size":1048576}"#).await;
    server.post(r#"{"name":"broken","size":1048576}"#).await;
    for client in server.clients() {
        let mut bytes = Vec::new();
        let mut take = |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        let path = "/v1/volumes/v/data?offset=254&size=4";
        assert_eq!(client.download(path, LIMIT, &mut take).await.unwrap(), 4);
        assert_eq!(bytes, [254, 255, 0, 1]);

        let mut at = 0_usize;
        let mut take = |piece: &[u8]| {
            assert!((at..).zip(piece).all(|(at, byte)| *byte == at as u8));
            at += piece.len();
            Ok(())
        };
        let path = "/v1/volumes/v/image";
        assert_eq!(client.download(path, LIMIT, &mut take).await.unwrap(), 1 << 20);

        let mut ignore = |_: &[u8]| Ok(());
        // A volume that could not be read to its end must not look whole.
        let path = "/v1/volumes/broken/image";
        let error = client.download(path, LIMIT, &mut ignore).await.unwrap_err();
        let broken = error.downcast_ref::<ClientError>();
        assert!(matches!(broken, Some(ClientError::Broken { .. })), "{error:#}");
        // And who takes it can stop.
        let mut full = |_: &[u8]| anyhow::bail!("disk full");
        let path = "/v1/volumes/v/image";
        let error = client.download(path, LIMIT, &mut full).await.unwrap_err();
        assert_eq!(error.to_string(), "disk full");

        for (path, kind) in [
            ("v/data?offset=1048576&size=1", ErrorKind::Invalid),
            ("v/data?offset=0&size=99999999", ErrorKind::Invalid),
            ("v/data?offset=0", ErrorKind::Invalid),
            ("v/data?offset=-1&size=1", ErrorKind::Invalid),
            ("absent/data?offset=0&size=1", ErrorKind::NotFound),
            ("absent/image", ErrorKind::NotFound),
        ] {
            let path = format!("/v1/volumes/{path}");
            let error = client.download(&path, LIMIT, &mut ignore).await.unwrap_err();
            let error = error.downcast_ref::<ClientError>().expect("the node's own");
            assert_eq!(error.kind(), Some(kind), "{path}: {error}");
        }
    }
}

#[tokio::test]
async fn metrics_are_one_sample_a_line() {
    let server = Server::start().await;
    server.post(r#"{"name":"v","size":1048576}"#).await;
    let (status, text) =
        server.raw("GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status, 200);
    for line in [
        "smalti_health 0",
        "smalti_node_up{node=\"n2\"} 1",
        "smalti_volume_bytes{volume=\"v\"} 1048576",
        "smalti_custodians_reachable 3",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}

#[tokio::test]
async fn a_starting_node_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let slot = ControlSlot::default();
    let fake = FakeControl::new(ClusterId(Uuid::from_u128(5)), 3, &dir.path().join("volumes.json"));
    let server = Server::start_with(dir, Arc::new(slot.clone())).await;
    let [client, _] = server.clients();
    let error = client.get::<StatusReport>("/v1/status", LIMIT).await.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Starting));
    assert!(error.is_elsewhere());
    assert!(slot.put(Arc::new(fake)).is_ok());
    client.get::<StatusReport>("/v1/status", LIMIT).await.unwrap();
}

#[tokio::test]
async fn stopping_ends_idle_connections() {
    let server = Server::start().await;
    let mut idle = TcpStream::connect(server.tcp).await.unwrap();
    let [client, _] = server.clients();
    client.get::<StatusReport>("/v1/status", LIMIT).await.unwrap();
    server.stop.cancel();
    server.tasks.close();
    tokio::time::timeout(LIMIT, server.tasks.wait()).await.unwrap();
    let mut end = [0; 1];
    assert!(matches!(idle.read(&mut end).await, Ok(0) | Err(_)));
    let error = client.get::<StatusReport>("/v1/status", LIMIT).await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn recovery_shares_are_taken_over_the_unix_socket_only_and_told_nobody() {
    let server = Server::start().await;
    let [unix, tcp] = server.clients();
    let share = |line: &str| ShareLine::new(Zeroizing::new(line.to_owned()));
    let shares: Vec<_> = ["one", "two", "three"].map(share).into();
    let wish = RecoverKeys { shares, check: true, ..RecoverKeys::default() };
    let path = "/v1/keys/recover";
    let report: RecoveryReport = unix.post(path, &wish, LIMIT).await.unwrap();
    assert_eq!((report.check, report.opened, report.dealt), (true, 1, 0));
    let refused = tcp.post::<_, RecoveryReport>(path, &wish, LIMIT).await.unwrap_err();
    assert!(refused.to_string().contains("Unix socket only"), "{refused}");
    for line in ["POST /v1/keys/recover", "POST /v1/keys/%72ecover", "POST //v1/keys/recover"] {
        let json = "content-type: application/json\r\n";
        let (status, body) = server.send(line, json, r#"{"shares":["a","b","c"]}"#).await;
        assert!((403..=404).contains(&status), "{line}: {status} {body}");
    }
    let few = RecoverKeys { shares: wish.shares[..2].to_vec(), ..RecoverKeys::default() };
    let few = unix.post::<_, RecoveryReport>(path, &few, LIMIT).await.unwrap_err();
    assert!(few.to_string().contains("3 are needed"), "{few}");
    // Whatever is wrong with a request, what it had is not said again.
    let wrong = serde_json::json!({"shares": "smalti-recovery-1-qqqqq"});
    let error = unix.post::<_, RecoveryReport>(path, &wrong, LIMIT).await.unwrap_err().to_string();
    assert!(error.contains("no request with recovery shares") && !error.contains("qqq"), "{error}");
}
