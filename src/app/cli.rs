//! The command line and its exit codes.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use super::config::{self, Boot, Config, Loaded, path_or_default};
use super::drain::Ending;
use super::reload::Reloader;
use super::report::Known;
use super::{bind, control, demo, explain};
use crate::base::effective::show;
use crate::base::section::Problem;
use crate::policy::bearer::looks_like_token;
use crate::telemetry::logging::{Format, Level, Log, LogSettings};

/// Failed while running, or the answer is no.
const FAILED: u8 = 1;
/// `EX_USAGE`
const USAGE: u8 = 64;
/// `EX_CONFIG`
const BAD_CONFIG: u8 = 78;

/// An authentication sidecar that owns the whole life of a WebSocket.
#[derive(Debug, Parser)]
#[command(name = "sidegate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Instead of `format` of the section log
    #[arg(long, global = true, value_enum)]
    log_format: Option<FormatArg>,
    /// Instead of `level` of the section log
    #[arg(long, global = true, value_enum)]
    log_level: Option<LevelArg>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    Json,
    Text,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LevelArg {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve
    Run(ConfigArg),
    /// Name every problem of a configuration, or show its effective values
    Check(ConfigArg),
    /// Try it: embedded issuer, embedded backend, gate and a page, on loopback
    Demo(demo::Options),
    /// Sum up logs of routes in shadow mode: who would have been refused, why, and which line decides it
    Report {
        /// Files of log lines; none, or - = standard input
        #[arg(value_name = "LOG")]
        logs: Vec<PathBuf>,
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Judge a request as the gate would, check by check; exit code 0 = allowed, 1 = denied
    Explain {
        #[command(flatten)]
        config: ConfigArg,
        /// The access token; - = read it from standard input, where no list of processes shows it
        #[arg(long, value_name = "TOKEN")]
        token: Option<String>,
        /// Where the socket is opened
        #[arg(long, default_value = "/")]
        path: String,
        /// The page's origin, such as `https://app.example.com`
        #[arg(long)]
        origin: Option<String>,
        /// The Host; else that of `public_url`, the first of `hosts`, or localhost
        #[arg(long)]
        host: Option<String>,
        /// Where the client connects from
        #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
        peer: std::net::IpAddr,
    },
    /// Ask the running gate to drain, for a preStop hook
    Drain {
        #[command(flatten)]
        config: ConfigArg,
        /// Return when the drain has ended
        #[arg(long)]
        wait: bool,
    },
    /// Ask the running gate whether it lives, for images without a shell
    Healthcheck(ConfigArg),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// Else `$SIDEGATE_CONFIG`, else /etc/sidegate/sidegate.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the program; its exit code says how it went.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to do if the terminal is gone.
            if !error.use_stderr() {
                let _ = error.print();
                return ExitCode::SUCCESS;
            }
            // A token in the wrong place is not repeated.
            let told = error.render().to_string();
            let is_secret = |word: &&str| looks_like_token(word);
            let words = told.split(|c: char| c.is_whitespace() || "'\"=".contains(c));
            let words = words.map(|word| word.trim_start_matches('-'));
            let secrets: Vec<&str> = words.filter(is_secret).collect();
            eprint!("{}", secrets.iter().fold(told.clone(), |told, secret| told.replace(secret, "***")));
            return USAGE.into();
        }
    };
    let code = match &cli.command {
        Command::Run(arg) => run(&cli, arg),
        Command::Check(arg) => check(arg),
        Command::Demo(options) => report(demo::run(options, |settings| cli.log(settings))),
        Command::Report { logs, config } => shadow(logs, config),
        Command::Explain { config, token, path, origin, host, peer } => {
            let asked = explain::Asked {
                token: token.clone(),
                path: path.clone(),
                origin: origin.clone(),
                host: host.clone(),
                peer: *peer,
            };
            explain_request(config, asked)
        }
        Command::Drain { config, wait } => admin(config, |config| control::drain(&config.admin, *wait)),
        Command::Healthcheck(config) => admin(config, |config| control::healthcheck(&config.admin)),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "sidegate", &mut std::io::stdout());
            0
        }
    };
    code.into()
}

impl Cli {
    fn log(&self, settings: LogSettings) -> LogSettings {
        adapted(settings, self.log_format, self.log_level)
    }
}

/// What the command line says goes before `[log]`.
fn adapted(settings: LogSettings, format: Option<FormatArg>, level: Option<LevelArg>) -> LogSettings {
    let format = format.map(|format| match format {
        FormatArg::Json => Format::Json,
        FormatArg::Text => Format::Text,
    });
    let level = level.map(|level| match level {
        LevelArg::Debug => Level::Debug,
        LevelArg::Info => Level::Info,
        LevelArg::Warn => Level::Warn,
        LevelArg::Error => Level::Error,
    });
    LogSettings {
        format: format.unwrap_or(settings.format),
        level: level.unwrap_or(settings.level),
        requests: settings.requests,
    }
}

fn load(arg: &ConfigArg, boot: Boot) -> (PathBuf, Loaded) {
    let path = path_or_default(arg.config.clone());
    let loaded = config::load(&path, boot);
    (path, loaded)
}

fn tell(kind: &str, path: &std::path::Path, problems: &[Problem]) {
    for problem in problems {
        eprintln!("{kind}: {}: {problem}", path.display());
    }
}

fn run(cli: &Cli, arg: &ConfigArg) -> u8 {
    let (format, level) = (cli.log_format, cli.log_level);
    let adapt = Box::new(move |settings| adapted(settings, format, level));
    // Watched before it is read, so that no change falls between the two.
    let reloader = Reloader::new(path_or_default(arg.config.clone()), adapt);
    let (path, loaded) = load(arg, Boot::First);
    tell("warning", &path, &loaded.warnings);
    tell("error", &path, &loaded.problems);
    let Some(config) = loaded.config else { return BAD_CONFIG };
    let log = Log::to_stdout(cli.log(config.log));
    let ending = bind(config, log).and_then(|mut bound| {
        bound.watch(reloader);
        bound.run(true)
    });
    report(ending.map(|ending| ending == Ending::Drained))
}

/// `Ok(false)` = it ended, but not well.
fn report(result: anyhow::Result<bool>) -> u8 {
    match result {
        Ok(true) => 0,
        Ok(false) => FAILED,
        Err(error) => {
            eprintln!("error: {error:#}");
            FAILED
        }
    }
}

fn explain_request(arg: &ConfigArg, mut asked: explain::Asked) -> u8 {
    let (path, loaded) = load(arg, Boot::Again);
    tell("error", &path, &loaded.problems);
    let Some(config) = loaded.config else { return BAD_CONFIG };
    if asked.token.as_deref() == Some("-") {
        let mut line = String::new();
        if let Err(error) = std::io::stdin().read_line(&mut line) {
            eprintln!("error: no token on standard input: {error}");
            return FAILED;
        }
        if line.trim().is_empty() {
            eprintln!("error: no token on standard input");
            return FAILED;
        }
        asked.token = Some(line.trim().to_owned());
    }
    report(explain::run(config, &path, &asked))
}

fn check(arg: &ConfigArg) -> u8 {
    let (path, loaded) = load(arg, Boot::First);
    tell("error", &path, &loaded.problems);
    tell("warning", &path, &loaded.warnings);
    if loaded.config.is_none() {
        return BAD_CONFIG;
    }
    // A reader that has seen enough closes the pipe: no reason to panic.
    let _ = writeln!(std::io::stdout(), "ok\n\n{}", show(&loaded.effective).trim_end());
    0
}

/// The configuration only helps to name lines: without `--config` there need not be any, and one with
/// problems, such as a file that is only there where the gate runs, is good enough.
fn shadow(logs: &[PathBuf], arg: &ConfigArg) -> u8 {
    if arg.config.is_none() && !path_or_default(None).exists() {
        return report(Ok(super::report::run(logs, None)));
    }
    let (path, loaded) = load(arg, Boot::Again);
    let is_read = !loaded.effective.is_empty();
    if !is_read && arg.config.is_some() {
        tell("error", &path, &loaded.problems);
        return BAD_CONFIG;
    }
    tell("warning", &path, &loaded.problems);
    let known = Known { path: &path, effective: &loaded.effective };
    report(Ok(super::report::run(logs, is_read.then_some(&known))))
}

fn admin(arg: &ConfigArg, ask: impl FnOnce(&Config) -> anyhow::Result<()>) -> u8 {
    let (path, loaded) = load(arg, Boot::Again);
    tell("error", &path, &loaded.problems);
    match loaded.config {
        Some(config) => report(ask(&config).map(|()| true)),
        None => FAILED,
    }
}
