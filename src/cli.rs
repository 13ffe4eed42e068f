//! The command line.

mod admin;
mod aggregate;
mod audit;
mod backup;
#[cfg(feature = "bench")]
mod bench;
#[cfg(feature = "chaos")]
mod chaos;
mod demo;
mod dlq;
mod events;
mod journal;
mod quarantine;
mod rebuild;
mod remote;
mod replay;
mod sagas;
mod schema;
mod serve;
mod sse;
mod subscriptions;
mod top;

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use remote::{Against, Remote};

use crate::config::{self, Config, LogTo, Source};
use crate::telemetry;

/// The variables that have no flag.
const VARIABLES: &str = "\
Variables without a flag (durations have a unit: 500ms, 30s, 5m):
  MASTER_KEY, TOKEN_KEY, LOOKUP_KEY  32 bytes each in base64 or hexadecimal; <name>_FILE names a
                             file. Development makes them up once
  DATABASE_WAIT              How long the start waits for a PostgreSQL that does not answer [60s]
  LEASE_TTL                  How long a silent process keeps its place on PostgreSQL [10s]
  DISK_FREE_MIN              With fewer bytes free for SQLite's files nothing new is taken from
                             outside; 0: nobody looks [268435456; 67108864 in development]
  MEMORY_LIMIT_BYTES         With nine tenths of them used nothing new is taken from outside; 0:
                             nobody looks [what the control group and the machine have]
  RETRY_MAX_RETRIES          How often a handler of events is tried again [3]
  RETRY_DELAY_MS             The first wait before that [1000]
  RETRY_EXPONENTIAL_BACKOFF  Whether each wait is twice the one before [true]
  RETRY_MAX_DELAY_MS         The longest wait [30000]
  OUTBOX_POLL_INTERVAL       How often a subscription looks for events it was not told of [1s]
  OUTBOX_BATCH_SIZE          For relays to message brokers, which do not exist yet: no effect
  OUTBOX_MAX_RETRIES         The same
  MAILBOX_CAP                How many commands may wait at one aggregate [1024]
  DLQ_LETTERS_MAX            How many dead letters of a subscription a partition holds before the
                             subscription stands still [10000]
  AGGREGATE_IDLE_TIMEOUT     How long an unused aggregate stays in memory [5m]
  EVENT_TYPE_PREFIX          What stands before the type of a CloudEvent [souk]
  CORS_ALLOWED_ORIGINS       Whose pages may ask and read, with commas between [nobody's]
  HTTP_STREAMS_MAX           How many streams of events are served at once [200]
  STREAM_RETENTION           How old the next event may be where a stream goes on [30d]
  RATE_LIMIT_REQUESTS        How many requests a caller may make in RATE_LIMIT_WINDOW; 0: nobody
                             counts [6000; 0 in development]
  RATE_LIMIT_WINDOW          The window of that quota [60s]
  TRUSTED_PROXIES            Networks of proxies that are believed in X-Forwarded-For [none]
  TLS_CERT_FILE, TLS_KEY_FILE  Certificate and key (PEM): nothing but TLS is spoken then
  TLS_CLIENT_CA_FILE         Whom clients must have certificates from [nobody]
  HTTP_CONNECTIONS_MAX       How many connections are served at once [10000]
  HTTP_BODY_BYTES_MAX        The largest request body [1048576]
  HTTP_HEADER_TIMEOUT        How long a request's head may take, and a connection be idle [20s]
  HTTP_BODY_TIMEOUT          How long a request's body may take [15s]
  HTTP_WRITE_TIMEOUT         How long a client may leave an answer unread [20s]
  EVENT_BYTES_MAX            The largest data of an event from outside [65536]
  PUBLISH_BATCH_MAX          How many events one request may publish [1000]
  PUBLISH_RATE_EVENTS        How many events a token may publish in a window [60000]
  PUBLISH_RATE_WINDOW        How long that window is [60s]
  SEQUENCE_GAP_TIMEOUT       How long an outside event waits for those before it [5m]
  SANDBOX_PAYMENTS           Whether orders may be paid by `sandbox`, which moves no money
                             [true in development]
  LOYALTY_RATES              The minor units of a point in each currency, or none [VND=10000]
  IMAGES_URL                 Where images are: file:///a/folder or s3://bucket/prefix [images in
                             the data folder]
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL
                             Who we are at S3, and where it is
  IMAGES_MAX                 How many images a listing may have [10]
  IMAGE_BYTES_MAX            The largest image [5242880]
  AUDIT_INTERVAL             How long after an audit of all deliveries the next begins; 0s: never
                             [1h]
  HOURLY_REPORTS             Whether a report is made of every hour [true]
  HEALTH_CHECK_INTERVAL      How often the service looks whether it is ready; 0s: never [30s]
  ALERT_INTERVAL             How often limits are looked at; 0s: never [15s]
  OTEL_EXPORTER_OTLP_ENDPOINT  A collector that traces are sent to [none]
  SHUTDOWN_DELAY             How long /readyz says 503 before the listener closes [3s; 0s in
                             development]
  SHUTDOWN_TIMEOUT           How long open requests and actors may take to finish [20s]
  LOG_TO                     Where the log of serve goes, stderr or stdout [stderr]
  REVEAL_VERIFICATION_TOKEN  Answer a registration with its token (development only) [false]
  WEBHOOK_ALLOW_HTTP         Whether webhooks may go to http addresses [true in development]
  WEBHOOK_ALLOWED_NETWORKS   Networks that webhooks may reach though they are not public
                             (10.1.0.0/16,fd00::/8) [none]
  EMAIL_ADAPTER              log, smtp (with SMTP_URL and SMTP_FROM) or sendgrid (with
                             SENDGRID_API_KEY and SENDGRID_FROM; SENDGRID_URL) [log]
  SMS_ADAPTER                log, or twilio (with TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN and
                             TWILIO_FROM) [log]
  MAIL_WEBHOOK_TOKEN         Who has it may tell of mails that came back [nobody]
  TEMPLATES_DIR              A folder whose files replace the templates of messages [none]
  MOMO_PARTNER_CODE, MOMO_ACCESS_KEY, MOMO_SECRET_KEY, MOMO_ENDPOINT, MOMO_IPN_URL, …
                             Payments by MoMo [not offered]
The README and docs/operations.md say more of each.";

/// Souk: an actor-model marketplace service.
#[derive(Parser)]
#[command(name = "souk", version, about, after_long_help = VARIABLES)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Each stands for the variable of its name, and comes before it.
#[derive(Args)]
struct Flags {
    /// development or production [APP_ENV]
    #[arg(long, global = true, value_name = "MODE")]
    app_env: Option<String>,
    /// The folder of all files [DATA_DIR, ./data]
    #[arg(long, global = true, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// The journal: postgres://… or sqlite:<path> [DATABASE_URL, journal.db in the data folder]
    #[arg(long, global = true, value_name = "URL")]
    database_url: Option<String>,
    /// Where to listen; port 0 takes a free one [HTTP_ADDR, 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "ADDRESS")]
    http_addr: Option<String>,
    /// How many partitions a new journal gets [PARTITIONS, 1 in SQLite, 8 in PostgreSQL]
    #[arg(long, global = true, value_name = "NUMBER")]
    partitions: Option<String>,
    /// A level or a filter [LOG_LEVEL, info]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API (also without a command)
    Serve,
    /// Bring the databases up to date, and end
    Migrate,
    /// Administrators
    #[command(subcommand)]
    Admin(AdminCommand),
    /// The journal
    #[command(subcommand)]
    Journal(JournalCommand),
    /// The schemas of events
    #[command(subcommand)]
    Schema(schema::SchemaCommand),
    /// Copy the journal, with everything that belongs to it, while it is in use
    Backup(backup::BackUp),
    /// Put a backup where the journal belongs; the server must not be running
    Restore(backup::Restore),
    /// Ask a running server whether every event has had its effect, once and in order
    Audit(Against<audit::Options>),
    /// Aggregates of a running server: what they are and were, and what made them so
    Aggregate(Against<aggregate::Options>),
    /// Aggregates of a running server that crashed again and again
    Quarantine(Against<quarantine::Options>),
    /// The busiest aggregates of a running server
    Top(Against<top::Options>),
    /// Subscriptions of a running server: how far they are, pauses, retry policies
    Subscriptions(Against<subscriptions::Options>),
    /// Read models of a running server: make one anew beside the one that serves
    Rebuild(Against<rebuild::Options>),
    /// Events delivered once more to a subscription of a running server
    Replay(Against<replay::Options>),
    /// Events of a running server
    Events(Against<events::Options>),
    /// Sagas of a running server: how far they are, and stepping in
    Sagas(Against<sagas::Options>),
    /// Dead letters of a running server: see them, and retry, skip or discard them
    Dlq(Against<dlq::Options>),
    /// Make a whole purchase and show every request, event and state
    Demo(demo::Options),
    /// Stop servers where it hurts, under load, and see whether promises are kept
    #[cfg(feature = "chaos")]
    Chaos(chaos::Options),
    /// Measure this build on this machine
    #[cfg(feature = "bench")]
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

#[derive(Subcommand)]
enum AdminCommand {
    /// Make an administrator; the password is asked for, or read from what is piped in
    Create {
        /// The address to log in with
        #[arg(long)]
        email: String,
        /// The first name
        #[arg(long, default_value = "Marketplace")]
        first_name: String,
        /// The last name
        #[arg(long, default_value = "Administrator")]
        last_name: String,
    },
}

#[derive(Subcommand)]
enum JournalCommand {
    /// Check the hash chain of every partition
    Verify,
    /// Copy everything into a store of the other kind, or elsewhere; the server must not be running
    Copy(journal::Copy),
}

/// Runs the program with the process's arguments and environment.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "chaos")]
    if let Some(Command::Chaos(options)) = cli.command {
        let Flags { partitions, database_url, .. } = cli.flags;
        return done(|| chaos::chaos(options, partitions.as_deref(), database_url));
    }
    #[cfg(feature = "bench")]
    if let Some(Command::Bench(command)) = cli.command {
        let data_dir = data_dir(&cli.flags);
        return done(|| async move { bench::bench(command, data_dir.as_ref()).await });
    }
    if let Some(Command::Schema(command)) = &cli.command {
        return schema::run(command);
    }
    let command = match cli.command {
        Some(Command::Audit(against)) => return remotely(&cli.flags, against, audit::run),
        Some(Command::Aggregate(against)) => return remotely(&cli.flags, against, aggregate::run),
        Some(Command::Quarantine(against)) => {
            return remotely(&cli.flags, against, quarantine::run);
        }
        Some(Command::Top(against)) => return remotely(&cli.flags, against, top::run),
        Some(Command::Subscriptions(against)) => {
            return remotely(&cli.flags, against, subscriptions::run);
        }
        Some(Command::Rebuild(against)) => return remotely(&cli.flags, against, rebuild::run),
        Some(Command::Replay(against)) => return remotely(&cli.flags, against, replay::run),
        Some(Command::Events(against)) => return remotely(&cli.flags, against, events::run),
        Some(Command::Sagas(against)) => return remotely(&cli.flags, against, sagas::run),
        Some(Command::Dlq(against)) => return remotely(&cli.flags, against, dlq::run),
        other => other,
    };
    let config = match load(&cli.flags, &command) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(config::EXIT_CODE);
        }
    };
    let data_dir = data_dir(&cli.flags);
    done(|| async move { dispatch(command, config, data_dir.as_ref()).await })
}

/// Runs a command to its exit code.
fn done<F>(command: impl FnOnce() -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(command()),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("souk: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The data folder, for commands that need nothing else of the configuration.
fn data_dir(flags: &Flags) -> String {
    let named = flags.data_dir.clone().or_else(|| std::env::var("DATA_DIR").ok());
    named.unwrap_or_else(|| config::DATA_DIR_DEFAULT.to_owned())
}

/// Runs a command against a server that is running. It needs no configuration.
fn remotely<O: Args, F>(
    flags: &Flags,
    against: Against<O>,
    command: impl FnOnce(Remote, O) -> F,
) -> ExitCode
where
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    let data_dir = data_dir(flags);
    done(|| async move {
        let (remote, options) = against.open(data_dir.as_ref())?;
        command(remote, options).await
    })
}

fn load(flags: &Flags, command: &Option<Command>) -> Result<Config, config::ConfigErrors> {
    // A demonstration against another server needs no configuration of its own, and one with a
    // server of its own has a folder of its own.
    if let Some(Command::Demo(_)) = command {
        let level = flags.log_level.clone().or_else(|| Some("warn".to_owned()));
        let folder = demo::folder();
        let nothing = |_: &str| None;
        return Config::load(
            &Source::new(&nothing)
                .with_flag("DATA_DIR", Some(folder.to_string_lossy().into_owned()))
                .with_flag("DATABASE_URL", flags.database_url.clone())
                .with_flag("PARTITIONS", flags.partitions.clone())
                .with_flag("HTTP_ADDR", Some("127.0.0.1:0".to_owned()))
                .with_flag("LOG_LEVEL", level),
        );
    }
    let environment = |name: &str| std::env::var(name).ok();
    let source = Source::new(&environment)
        .with_flag("APP_ENV", flags.app_env.clone())
        .with_flag("DATA_DIR", flags.data_dir.clone())
        .with_flag("DATABASE_URL", flags.database_url.clone())
        .with_flag("HTTP_ADDR", flags.http_addr.clone())
        .with_flag("PARTITIONS", flags.partitions.clone())
        .with_flag("LOG_LEVEL", flags.log_level.clone());
    Config::load(&source)
}

/// `data_dir` is the folder of a server that is running, which a demonstration asks.
async fn dispatch(
    command: Option<Command>,
    config: Config,
    data_dir: &Path,
) -> anyhow::Result<ExitCode> {
    let log_to = match command {
        None | Some(Command::Serve) => config.log_to,
        // What is asked for is on standard output.
        Some(_) => LogTo::StandardError,
    };
    telemetry::start_logging(&config.log_level, log_to);
    match command {
        None | Some(Command::Serve) => serve::serve(config).await,
        Some(Command::Migrate) => journal::migrate(&config).await,
        Some(Command::Admin(AdminCommand::Create { email, first_name, last_name })) => {
            admin::create(&config, &email, &first_name, &last_name).await
        }
        Some(Command::Journal(JournalCommand::Verify)) => journal::verify(&config).await,
        Some(Command::Journal(JournalCommand::Copy(options))) => {
            journal::copy(&config, options).await
        }
        Some(Command::Backup(options)) => backup::back_up(&config, options).await,
        Some(Command::Restore(options)) => backup::restore(&config, options).await,
        Some(Command::Demo(options)) => demo::demo(config, options, data_dir).await,
        Some(
            Command::Schema(_)
            | Command::Audit(_)
            | Command::Aggregate(_)
            | Command::Quarantine(_)
            | Command::Subscriptions(_)
            | Command::Top(_)
            | Command::Rebuild(_)
            | Command::Replay(_)
            | Command::Events(_)
            | Command::Sagas(_)
            | Command::Dlq(_),
        ) => {
            unreachable!("it needs no configuration and is done before")
        }
        #[cfg(feature = "chaos")]
        Some(Command::Chaos(_)) => unreachable!("it needs no configuration and is done before"),
        #[cfg(feature = "bench")]
        Some(Command::Bench(_)) => unreachable!("it needs no configuration and is done before"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// What the README lists stands in `souk help` too.
    #[test]
    fn help_tells_of_every_variable_that_the_readme_tells_of() {
        let help = Cli::command().render_long_help().to_string();
        let readme = include_str!("../README.md");
        let told = readme.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | "));
        let is_name = |name: &&str| {
            name.contains('_') && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        };
        let names = told.flat_map(|(names, _)| names.split(['`', ',', ' '])).filter(is_name);
        let names: Vec<_> = names.filter(|name| !name.ends_with("_FILE")).collect();
        assert!(names.len() > 40, "{names:?}");
        for name in names {
            assert!(help.contains(name), "{name} is missing");
        }
    }

    #[test]
    fn serve_is_what_happens_without_a_command() {
        let cli = Cli::try_parse_from(["souk", "--http-addr", "127.0.0.1:0"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.flags.http_addr.as_deref(), Some("127.0.0.1:0"));
        let cli = Cli::try_parse_from(["souk", "admin", "create", "--email", "a@b.co"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Admin(_))));
    }
}
