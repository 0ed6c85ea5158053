//! What is written in the configuration: accepted, refused by name, warned of.

use sidegate::app::config::read;

fn loaded(blacklist: &str) -> (Vec<String>, Vec<String>) {
    let text = format!(
        "[blacklist]\n{blacklist}\n[[issuer]]\nurl = 'https://sso.example.com/realms/demo'\naudiences = ['chat']\n[[route]]\npath = '/*'\n"
    );
    let loaded = read(&text, std::iter::empty());
    let [problems, warnings] =
        [loaded.problems, loaded.warnings].map(|all| all.iter().map(ToString::to_string).collect());
    (problems, warnings)
}

fn problems(blacklist: &str) -> Vec<String> {
    loaded(blacklist).0
}

#[test]
fn every_place_of_a_server_is_accepted() {
    for url in [
        "redis://127.0.0.1",
        "redis://cache:6380/2",
        "redis://user:pass@cache",
        "rediss://:p%40ss@cache:6380",
        "redis+unix:///run/redis.sock",
        "redis+sentinel://one:26379,two,[::1]:7/mymaster",
        "rediss+sentinel://user:pass@one:26379/mymaster/3",
        "redis+cluster://user:pass@one:6379,two:6380",
        "rediss+cluster://one",
    ] {
        assert_eq!(problems(&format!("redis = {{ url = '{url}' }}")), Vec::<String>::new(), "{url}");
    }
}

#[test]
fn what_cannot_be_is_named_with_key_value_and_remedy() {
    for (written, key, remedy) in [
        ("redis = { prefix = 'x:' }", "blacklist.redis.url", "is missing"),
        ("redis = { url = 'http://cache' }", "blacklist.redis.url", "redis://"),
        ("redis = { url = 'cache:6379' }", "blacklist.redis.url", "redis://"),
        ("redis = { url = 'redis://cache:port' }", "blacklist.redis.url", "redis://"),
        ("redis = { url = 'rediss://cache/#insecure' }", "blacklist.redis.url", "ca_file"),
        ("redis = { url = 'redis+sentinel://one:26379' }", "blacklist.redis.url", "names no master"),
        ("redis = { url = 'redis+sentinel://one:x/m' }", "blacklist.redis.url", "redis+sentinel://"),
        ("redis = { url = 'redis+cluster://:1' }", "blacklist.redis.url", "redis+cluster://"),
        ("redis = { url = 'redis://c', ca_file = '/none.pem' }", "blacklist.redis.ca_file", "/none.pem"),
        ("redis = { url = 'redis://c', ca_file = 'Cargo.toml' }", "blacklist.redis.ca_file", "Cargo.toml"),
        ("redis = { url = 'redis://c', prefix = '{x}' }", "blacklist.redis.prefix", "braces"),
        ("redis = { url = 'redis://c', keys = ['x:{jti}', 'y'] }", "blacklist.redis.keys", "\"y\""),
        ("redis = { url = 'redis://c', keys = 'x:{jti}' }", "blacklist.redis.keys", "a list"),
        ("redis = { url = 'redis://c', sweep = 0 }", "blacklist.redis.sweep", "off"),
        ("redis = { url = 'redis://c', sweeps = '1s' }", "blacklist.redis.sweeps", "unknown"),
        ("redis = 'redis://c'", "blacklist.redis", "[blacklist.redis]"),
        ("backchannel_logout = { clients = ['web'] }", "blacklist.backchannel_logout.path", "is missing"),
        ("backchannel_logout = { path = '/l' }", "blacklist.backchannel_logout.clients", "is missing"),
        (
            "backchannel_logout = { path = '/l', clients = [] }",
            "blacklist.backchannel_logout.clients",
            "is empty",
        ),
        (
            "backchannel_logout = { path = 'l', clients = ['w'] }",
            "blacklist.backchannel_logout.path",
            "exact path",
        ),
        (
            "backchannel_logout = { path = '/l?x', clients = ['w'] }",
            "blacklist.backchannel_logout.path",
            "exact path",
        ),
        (
            "backchannel_logout = { path = '/a/../l', clients = ['w'] }",
            "blacklist.backchannel_logout.path",
            "exact path",
        ),
        (
            "backchannel_logout = { path = '/l/*', clients = ['w'] }",
            "blacklist.backchannel_logout.path",
            "exact path",
        ),
    ] {
        let problems = problems(written);
        let [problem] = problems.as_slice() else { panic!("{written}: {problems:?}") };
        assert!(problem.contains(key) && problem.contains(remedy), "{written}: {problem}");
        assert!(problem.starts_with("line 2: "), "{written}: {problem}");
    }
}

#[test]
fn a_password_is_never_shown() {
    let (problems, _) = loaded("redis = { url = 'redis://user:s3cret@cache:port' }");
    assert!(!problems[0].contains("s3cret") && problems[0].contains("***"), "{problems:?}");
    let text = "[blacklist]\nredis = { url = 'redis+sentinel://user:s3cret@one/m' }\n[[route]]\npath = '/*'\nauth = 'none'\n";
    let loaded = read(text, std::iter::empty());
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    assert!(!format!("{:?}", loaded.effective).contains("s3cret"));
}

#[test]
fn a_logout_that_one_replica_alone_hears_of_is_warned_of() {
    let logout = "backchannel_logout = { path = '/oidc/logout', clients = ['web'] }";
    let (problems, warnings) = loaded(logout);
    assert!(problems.is_empty(), "{problems:?}");
    assert!(
        warnings.iter().any(|warning| warning.contains("backchannel_logout") && warning.contains("redis = ")),
        "{warnings:?}"
    );
    let (_, warnings) = loaded(&format!("{logout}\nredis = {{ url = 'redis://cache' }}"));
    assert!(!warnings.iter().any(|warning| warning.contains("backchannel_logout")), "{warnings:?}");
}
