//! Where the server may be: behind TLS, on a unix socket, behind sentinels, in a cluster.

use serde_json::json;
use tokio::time::Instant;

use super::super::harness::{Folder, Handshake, Issuer, eventually};
use super::replicas::{await_entries, lonely, reach, replica};
use super::server::{Redis, port};

fn assert_shares(url: &str, more: &str) {
    let issuer = Issuer::start();
    let limited = |config: super::super::harness::Config| config.set("limits.sessions_per_user", "1");
    let a = replica(&issuer, url, more, limited);
    let b = replica(&issuer, url, more, limited);
    assert_eq!(reach(&a.revoked(&json!({"sub": "alice"}))), ("shared", true), "{url}");
    await_entries(&b, 1);
    let _held = a.open(&a.token_of("bob"));
    let refused = b.gate.refusal(&Handshake::to("/ws/").bearer(&b.token_of("bob")));
    assert_eq!(refused.1, "user_sessions_exceeded", "{url}");
    assert_eq!(a.gate.metric("limit_alone_total") + b.gate.metric("limit_alone_total"), 0);
}

/// A certificate for 127.0.0.1 by an authority of the test's own: the files of both, and of the key.
fn certificates(folder: &Folder) -> [String; 3] {
    let authority = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_certificate = parameters.self_signed(&authority).unwrap();
    let issuer = rcgen::Issuer::new(parameters, authority);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, &issuer).unwrap();
    [
        ("ca.pem", authority_certificate.pem()),
        ("cert.pem", certificate.pem()),
        ("key.pem", key.serialize_pem()),
    ]
    .map(|(name, text)| folder.write(name, &text).display().to_string())
}

#[test]
fn behind_tls_with_a_private_authority_and_a_password() {
    let folder = Folder::new();
    let [ca, cert, key] = certificates(&folder);
    let tls_port = port().to_string();
    let arguments = [
        "--tls-port",
        &tls_port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
        "--requirepass",
        "pass word",
    ];
    let _redis = Redis::with(&arguments);
    let url = format!("rediss://:pass%20word@127.0.0.1:{tls_port}");
    assert_shares(&url, &format!("ca_file = '{ca}'"));
    // Whom nobody vouches for is not spoken to.
    let desk = lonely(&Issuer::start(), &url, "", |config| config);
    let told = desk.gate.logged("blacklist_redis_lost");
    assert!(told["message"].as_str().unwrap().contains("certificate"), "{told}");
    assert_eq!(desk.plain(&desk.token_of("alice")).0, 503);
}

#[test]
fn on_a_unix_socket_and_in_another_database() {
    let folder = Folder::new();
    let socket = folder.path("redis.sock").display().to_string();
    let redis = Redis::with(&["--unixsocket", &socket]);
    eventually("the socket", || folder.path("redis.sock").exists().then_some(()));
    assert_shares(&format!("redis+unix://{socket}"), "");
    assert_shares(&format!("{}/3", redis.url()), "");
    assert_eq!(redis.say_as(&["-n", "3"], &["XLEN", "sidegate:{v1}:revocations"]), "1");
}

#[test]
fn behind_sentinels_and_after_a_failover_nothing_is_lost() {
    let folder = Folder::new();
    let mut master = Redis::with(&["--requirepass", "s3cret", "--masterauth", "s3cret"]);
    let replica_of = format!("127.0.0.1 {}", master.port);
    let second = Redis::with(&[
        "--replicaof",
        &replica_of,
        "--requirepass",
        "s3cret",
        "--masterauth",
        "s3cret",
        "--repl-diskless-sync-delay",
        "0",
    ]);
    let text = format!(
        "sentinel monitor one 127.0.0.1 {} 1\nsentinel auth-pass one s3cret\nsentinel down-after-milliseconds one 500\nsentinel failover-timeout one 5000\n",
        master.port
    );
    let sentinel = folder.write("sentinel.conf", &text).display().to_string();
    // The file comes first among the arguments.
    let sentinel_port = port();
    let mut sentinel = std::process::Command::new("redis-server")
        .args([&sentinel, "--sentinel", "--port", &sentinel_port.to_string(), "--bind", "127.0.0.1"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let auth = ["--no-auth-warning", "-a", "s3cret"];
    eventually("replication", || {
        second.say_as(&auth, &["INFO", "replication"]).contains("master_link_status:up").then_some(())
    });
    let known = || {
        let output = std::process::Command::new("redis-cli")
            .args(["-p", &sentinel_port.to_string(), "sentinel", "replicas", "one"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().contains(&second.port.to_string())
    };
    // It asks the master every ten seconds.
    let since = Instant::now();
    while !known() {
        assert!(since.elapsed().as_secs() < 20, "the sentinel never heard of the second server");
        super::server::a_while();
    }
    let url = format!("redis+sentinel://:s3cret@127.0.0.1:{sentinel_port}/one");
    let issuer = Issuer::start();
    let a = replica(&issuer, &url, "", |config| config);
    a.revoked(&json!({"sub": "alice"}));
    master.kill();
    assert_eq!(reach(&a.revoked(&json!({"sub": "bob"}))), ("replica", false));
    let since = Instant::now();
    while second.say_as(&auth, &["XLEN", "sidegate:{v1}:revocations"]) != "2" {
        assert!(since.elapsed().as_secs() < 30, "not told to the new master");
        super::server::a_while();
    }
    let b = replica(&issuer, &url, "", |config| config);
    await_entries(&b, 2);
    let _ = sentinel.kill();
    let _ = sentinel.wait();
}

#[test]
fn in_a_cluster_of_three() {
    let nodes: Vec<_> = (0..3)
        .map(|_| {
            let bus = port().to_string();
            Redis::with(&[
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                "2000",
            ])
        })
        .collect();
    let addresses: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let mut create = vec!["--cluster", "create"];
    create.extend(addresses.iter().map(String::as_str));
    create.push("--cluster-yes");
    nodes[0].say_as(&create, &[]);
    for node in &nodes {
        eventually("the cluster", || {
            node.say(&["CLUSTER", "INFO"]).contains("cluster_state:ok").then_some(())
        });
    }
    for seed in [addresses.join(","), addresses[1].clone()] {
        assert_shares(&format!("redis+cluster://{seed}"), &format!("prefix = '{}:'", seed.len()));
    }
    // Keys of a backend's own blacklist lie wherever they lie.
    let desk = replica(
        &Issuer::start(),
        &format!("redis+cluster://{}", addresses[0]),
        "keys = ['u:{sub}', 'j:{jti}', 's:{sid}']",
        |config| config,
    );
    for name in ["alice", "bob", "carol", "dave", "erin"] {
        let token = desk.token_of(name);
        desk.assert_welcome(&token);
        nodes[0].say_as(&["-c"], &["SET", &format!("j:{name}-jti"), "1"]);
        desk.assert_unwelcome(&token, "token_revoked");
    }
}
