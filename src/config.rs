//! Configuration: flags before environment before defaults, one small struct per concern.
//!
//! Only start-up reads the environment. Everything that is wrong is reported together, one line per
//! variable, and the program ends with [`EXIT_CODE`].

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod database;
mod images;
mod messaging;
mod payments;
mod reader;
mod secret;

pub use database::{Database, Postgres};
pub use messaging::Messaging;
pub use reader::{ConfigError, ConfigErrors, Origin, Setting, Source, key_file};
pub use secret::{Credential, Secret};

use ipnet::IpNet;
use messaging::messaging;
use reader::Reader;
use souk_actors::journal::postgres::LEASE_TTL_DEFAULT;
use souk_actors::journal::sqlite::Durability;
use souk_actors::retry::RetryPolicy;
use url::{Host, Url};

use crate::domain::loyalty::Rates;
use crate::gateways::momo;
use crate::gateways::webhook::Reach;
use crate::images::Location;
use crate::tls;

/// The journal's file in the data folder.
pub const JOURNAL_FILE: &str = "journal.db";
/// Where all files are when nobody says otherwise.
pub const DATA_DIR_DEFAULT: &str = "./data";

/// A shorter lease would be lost to a pause that means nothing, a longer one only delays whoever
/// takes over.
const LEASE_TTL_RANGE: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(600);

/// Between two audits.
const AUDIT_INTERVAL_DEFAULT: Duration = Duration::from_secs(60 * 60);

/// Between two looks at the figures of subscriptions.
const ALERT_INTERVAL_DEFAULT: Duration = Duration::from_secs(15);
const HEALTH_CHECK_INTERVAL_DEFAULT: Duration = Duration::from_secs(30);

/// The largest `DISK_FREE_MIN`: a tebibyte.
const DISK_FREE_MIN_MAX: usize = 1 << 40;

/// The largest `MEMORY_LIMIT_BYTES`: a pebibyte.
const MEMORY_LIMIT_MAX: usize = 1 << 50;

/// The exit code of a program that was configured wrongly (`EX_CONFIG` of sysexits).
pub const EXIT_CODE: u8 = 78;

/// How the program takes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Loopback only, `/dev/*` exists, secrets are made up once and kept in the data folder.
    Development,
    /// No `/dev/*`, no default secret.
    Production,
}

impl Mode {
    /// Whether this is development mode.
    pub fn is_development(self) -> bool {
        self == Self::Development
    }

    /// The name as `APP_ENV` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Production => "production",
        }
    }
}

/// Where a log goes, a JSON object in each line. What people read of a server goes to the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogTo {
    /// Beside what a command answers.
    StandardError,
    /// To who collects the standard output of a process, and expects nothing but the log there.
    StandardOutput,
}

/// Everything the program was told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Every setting in force, to be looked at.
    pub settings: Vec<Setting>,
    /// `APP_ENV`.
    pub mode: Mode,
    /// Where data is kept.
    pub storage: Storage,
    /// How HTTP is served.
    pub http: Http,
    /// The keys that stored data and tokens rest on.
    pub keys: Keys,
    /// The runtime's limits.
    pub runtime: Runtime,
    /// How handlers of events are retried: `RETRY_MAX_RETRIES` after the first try,
    /// `RETRY_DELAY_MS` the first wait, `RETRY_EXPONENTIAL_BACKOFF` whether each wait is twice the
    /// one before, `RETRY_MAX_DELAY_MS` the longest.
    pub retry: RetryPolicy,
    /// How events are passed on.
    pub outbox: Outbox,
    /// What publishers outside may do.
    pub publishing: Publishing,
    /// `LOYALTY_RATES`: for how many minor units of each currency a buyer has a point.
    pub loyalty: Rates,
    /// What is taken in of images.
    pub images: Images,
    /// `AUDIT_INTERVAL`: how long after one audit of all deliveries the next begins; nothing: there
    /// are none.
    pub audit_interval: Duration,
    /// `HOURLY_REPORTS`: whether reports of every hour are begun, where they have not been yet.
    pub hourly_reports: bool,
    /// `HEALTH_CHECK_INTERVAL`: how often the service asks itself what `/readyz` answers; nothing:
    /// never.
    pub health_check_interval: Duration,
    /// `ALERT_INTERVAL`: how often the figures of subscriptions are held against their limits;
    /// nothing: nobody looks.
    pub alert_interval: Duration,
    /// Where webhooks may go: `WEBHOOK_ALLOW_HTTP` whether `http:` will do, and
    /// `WEBHOOK_ALLOWED_NETWORKS` which networks may be reached although they are not public.
    pub webhooks: Reach,
    /// `MOMO_*`: who we are at MoMo; none: it is not offered.
    pub momo: Option<momo::Settings>,
    /// `SANDBOX_PAYMENTS`: whether orders may be paid by the sandbox, which moves no money.
    pub sandbox_payments: bool,
    /// How people are reached.
    pub messaging: Messaging,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: the collector that traces are sent to; none: nothing is
    /// traced.
    pub traces: Option<Url>,
    /// `LOG_LEVEL`: a level or a filter in the syntax of `tracing`'s `EnvFilter`.
    pub log_level: String,
    /// `LOG_TO`: where the log of `souk serve` goes.
    pub log_to: LogTo,
    /// What a chaos run asks of its server.
    #[cfg(feature = "chaos")]
    pub chaos: Chaos,
}

/// What a chaos run asks of its server; in development mode only.
#[cfg(feature = "chaos")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chaos {
    /// `SOUK_FAULT_POINTS` (`writer.before_reply:abort:after=17`, with commas between): what
    /// happens at which points.
    pub fault_points: Vec<souk_actors::faults::points::Armed>,
    /// `SOUK_SANDBOX_RECORD`: the file in which the built-in payment provider keeps its own
    /// record, outside the service.
    pub sandbox_record: Option<PathBuf>,
}

/// Where data is kept.
#[derive(Debug, Clone)]
pub struct Storage {
    /// `DATA_DIR`: the folder of everything that is kept in files.
    pub data_dir: PathBuf,
    /// `IMAGES_URL`: the folder or the bucket of the images of listings; `images` in the data folder
    /// when there is none.
    pub images: Location,
    /// `DATABASE_URL`: where the journal is; `journal.db` in the data folder when there is none.
    pub database: Database,
    /// `DATABASE_WAIT`: how long the start waits for a PostgreSQL that does not answer.
    pub database_wait: Duration,
    /// `LEASE_TTL`: how long a process that has gone silent keeps its place on PostgreSQL.
    pub lease_ttl: Duration,
    /// `DISK_FREE_MIN`: with less than so many bytes free for the files of SQLite nothing new is
    /// taken from outside; 0: nobody looks.
    pub disk_free_min: u64,
    /// `JOURNAL_DURABILITY`: less than full in development builds for tests only.
    pub durability: Durability,
}

/// How HTTP is served.
#[derive(Debug, Clone)]
pub struct Http {
    /// `HTTP_ADDR`: where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// `HTTP_CONNECTIONS_MAX`: how many connections are served at once; more wait unaccepted.
    pub connections_max: usize,
    /// `HTTP_BODY_BYTES_MAX`: the largest request body.
    pub body_bytes_max: usize,
    /// `HTTP_HEADER_TIMEOUT`: how long a connection may take to send a request's head, and so also
    /// how long it may be idle.
    pub header_timeout: Duration,
    /// `HTTP_BODY_TIMEOUT`: how long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// `HTTP_WRITE_TIMEOUT`: how long a client may leave an answer unread.
    pub write_timeout: Duration,
    /// `HTTP_STREAMS_MAX`: how many streams of events are served at once; more are 503.
    pub streams_max: usize,
    /// `STREAM_RETENTION`: how old the next event may be where a stream goes on; before that it
    /// is 410.
    pub stream_retention: Duration,
    /// `SHUTDOWN_DELAY`: how long `/readyz` says 503 before the listener closes.
    pub shutdown_delay: Duration,
    /// `SHUTDOWN_TIMEOUT`: how long open requests and actors may take to finish.
    pub shutdown_timeout: Duration,
    /// `CORS_ALLOWED_ORIGINS`: the pages of which sites may read answers; none: no other site's.
    pub cors_allowed_origins: Vec<String>,
    /// `RATE_LIMIT_REQUESTS`: how many requests one caller may make in `rate_window`; 0: nobody counts.
    pub rate_requests: usize,
    /// `RATE_LIMIT_WINDOW`.
    pub rate_window: Duration,
    /// `TRUSTED_PROXIES`: the networks of proxies that are believed when they say who asks.
    pub trusted_proxies: Vec<IpNet>,
    /// `TLS_CERT_FILE`, `TLS_KEY_FILE`, `TLS_CLIENT_CA_FILE`: how TLS is spoken; none: it is not.
    pub tls: Option<tls::Files>,
    /// `REVEAL_VERIFICATION_TOKEN`: answer a registration with its token (development only).
    pub reveal_verification_token: bool,
}

/// The keys that stored data and tokens rest on. They must never change.
#[derive(Debug, Clone)]
pub struct Keys {
    /// `MASTER_KEY`: wraps the keys of personal data.
    pub master: Secret,
    /// `TOKEN_KEY`: signs tokens and cursors.
    pub token: Secret,
    /// `LOOKUP_KEY`: hashes what is looked up but must not be guessed.
    pub lookup: Secret,
}

/// The runtime's limits.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// `PARTITIONS`: how many partitions a new journal gets; none means the store's default.
    pub partitions: Option<u16>,
    /// `MAILBOX_CAP`: how many commands may wait at one aggregate.
    pub mailbox_cap: Option<usize>,
    /// `DLQ_LETTERS_MAX`: how many letters of a subscription a partition holds before it stands
    /// still.
    pub letters_max: usize,
    /// `MEMORY_LIMIT_BYTES`: with more than nine tenths of so many bytes used nothing new is taken from
    /// outside; 0: nobody looks, none: what the control group and the machine have.
    pub memory_limit: Option<u64>,
    /// `AGGREGATE_IDLE_TIMEOUT`: how long an aggregate stays in memory unused.
    pub aggregate_idle_timeout: Option<Duration>,
    /// `EVENT_TYPE_PREFIX`: what stands before an event's type in CloudEvents.
    pub event_type_prefix: String,
}

/// How events are passed on. The journal is the outbox: what is committed there wakes every
/// subscription.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outbox {
    /// `OUTBOX_POLL_INTERVAL`: how often a subscription looks for what it was not woken for.
    pub poll_interval: Duration,
    /// `OUTBOX_BATCH_SIZE`: how many events a relay to a message broker takes at once. There are no
    /// relays yet, so this is read and checked and has no effect.
    pub batch_size: usize,
    /// `OUTBOX_MAX_RETRIES`: how often a relay tries an event again. No effect yet, as above.
    pub retries_max: u32,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { poll_interval: Duration::from_secs(1), batch_size: 100, retries_max: 5 }
    }
}

/// What publishers outside may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publishing {
    /// `EVENT_BYTES_MAX`: the largest data of an event.
    pub event_bytes_max: usize,
    /// `PUBLISH_BATCH_MAX`: how many events one request may have.
    pub batch_max: usize,
    /// `PUBLISH_RATE_EVENTS`: how many events a token may publish in `rate_window`, where it has no
    /// quota of its own.
    pub rate_events: usize,
    /// `PUBLISH_RATE_WINDOW`.
    pub rate_window: Duration,
    /// `SEQUENCE_GAP_TIMEOUT`: how long an event waits for those before it.
    pub sequence_gap_timeout: Duration,
}

impl Default for Publishing {
    fn default() -> Self {
        Self {
            event_bytes_max: 64 * 1024,
            batch_max: 1_000,
            rate_events: 60_000,
            rate_window: Duration::from_secs(60),
            sequence_gap_timeout: Duration::from_secs(5 * 60),
        }
    }
}

/// What is taken in of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Images {
    /// `IMAGES_MAX`: how many a listing may have.
    pub images_max: usize,
    /// `IMAGE_BYTES_MAX`: the largest file.
    pub bytes_max: usize,
}

impl Config {
    /// Reads everything, or says everything that is wrong. In development mode missing keys are
    /// made up and written to the data folder.
    pub fn load(source: &Source<'_>) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::new(source);
        let mode = mode(&mut reader);
        let storage = storage(&mut reader, mode);
        let http = http(&mut reader, mode);
        let keys = keys(&mut reader, mode, &storage.data_dir);
        let runtime = runtime(&mut reader);
        let retry = retry(&mut reader);
        let outbox = outbox(&mut reader);
        let publishing = publishing(&mut reader);
        let loyalty = reader.parsed(
            "LOYALTY_RATES",
            Rates::default(),
            "currencies with the minor units of a point (VND=10000,USD=100), or none",
        );
        let images = Images {
            images_max: reader.number("IMAGES_MAX", 10, 0..=100),
            bytes_max: reader.number("IMAGE_BYTES_MAX", 5 << 20, 1_024..=(64 << 20)),
        };
        let audit_interval = reader.duration_or_none("AUDIT_INTERVAL", AUDIT_INTERVAL_DEFAULT);
        let hourly_reports = reader.flag("HOURLY_REPORTS", true);
        let alert_interval = reader.duration_or_none("ALERT_INTERVAL", ALERT_INTERVAL_DEFAULT);
        let health_check_interval =
            reader.duration_or_none("HEALTH_CHECK_INTERVAL", HEALTH_CHECK_INTERVAL_DEFAULT);
        let webhooks = webhooks(&mut reader, mode);
        let momo = payments::momo(&mut reader, mode);
        let sandbox_payments = reader.flag("SANDBOX_PAYMENTS", mode.is_development());
        let messaging = messaging(&mut reader);
        let traces = traces(&mut reader);
        let (log_level, log_to) = (log_level(&mut reader), log_to(&mut reader));
        #[cfg(feature = "chaos")]
        let chaos = chaos(&mut reader, mode);
        let settings = reader.finish()?;
        let keys = keys.expect("a missing key is an error that ended this above");
        Ok(Self {
            settings,
            mode,
            storage,
            http,
            keys,
            runtime,
            retry,
            outbox,
            publishing,
            loyalty,
            images,
            audit_interval,
            hourly_reports,
            alert_interval,
            health_check_interval,
            webhooks,
            momo,
            sandbox_payments,
            messaging,
            traces,
            log_level,
            log_to,
            #[cfg(feature = "chaos")]
            chaos,
        })
    }

    /// A development configuration on a free port with made-up keys, for tests and for `souk demo`.
    pub fn for_testing(data_dir: &Path) -> Self {
        let vars = [
            ("DATA_DIR", data_dir.to_string_lossy().into_owned()),
            ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
            ("SHUTDOWN_DELAY", "0s".to_owned()),
            ("ALERT_INTERVAL", "0s".to_owned()),
        ];
        let read = |name: &str| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
        };
        Self::load(&Source::new(&read)).expect("these few values are valid, the folder is writable")
    }
}

fn mode(reader: &mut Reader<'_>) -> Mode {
    let text = reader.text_or("APP_ENV", "development");
    match text.as_str() {
        "development" | "dev" => Mode::Development,
        "production" | "prod" => Mode::Production,
        _ => {
            reader.error("APP_ENV", "must be development or production");
            Mode::Production
        }
    }
}

fn storage(reader: &mut Reader<'_>, mode: Mode) -> Storage {
    let data_dir = PathBuf::from(reader.text_or("DATA_DIR", DATA_DIR_DEFAULT));
    let database = match reader.text("DATABASE_URL").map(|url| Database::parse(&url)) {
        Some(Ok(database)) => database,
        given => {
            if let Some(Err(problem)) = given {
                reader.error("DATABASE_URL", problem);
            }
            Database::Sqlite(data_dir.join(JOURNAL_FILE))
        }
    };
    let lease_ttl = reader.duration("LEASE_TTL", LEASE_TTL_DEFAULT);
    if !LEASE_TTL_RANGE.contains(&lease_ttl) {
        reader.error("LEASE_TTL", "must be between 100ms and 10m");
    }
    let images = images::location(reader, data_dir.join("images"));
    let free_min = if mode.is_development() { 64 << 20 } else { 256 << 20 };
    Storage {
        data_dir,
        images,
        database,
        database_wait: reader.duration("DATABASE_WAIT", Duration::from_secs(60)),
        lease_ttl,
        disk_free_min: reader.number("DISK_FREE_MIN", free_min, 0..=DISK_FREE_MIN_MAX) as u64,
        durability: durability(reader),
    }
}

/// Tests of durability must be able to fail: a build for them can be told to sync less. No other
/// build can.
fn durability(reader: &mut Reader<'_>) -> Durability {
    match reader.text("JOURNAL_DURABILITY").as_deref() {
        None | Some("full") => {}
        Some("normal") if cfg!(feature = "chaos") => return Durability::Normal,
        Some(_) => reader.error("JOURNAL_DURABILITY", "must be full, or be left out"),
    }
    Durability::Full
}

fn http(reader: &mut Reader<'_>, mode: Mode) -> Http {
    let local = SocketAddr::from(([127, 0, 0, 1], 8080));
    let address = reader.parsed("HTTP_ADDR", local, "an address and a port (127.0.0.1:8080)");
    reader.note_default("HTTP_ADDR", address);
    if mode.is_development() && !address.ip().is_loopback() {
        reader.error(
            "HTTP_ADDR",
            "development mode listens on loopback only; set APP_ENV=production to listen elsewhere",
        );
    }
    let reveal_verification_token = reader.flag("REVEAL_VERIFICATION_TOKEN", false);
    if reveal_verification_token && !mode.is_development() {
        reader.error("REVEAL_VERIFICATION_TOKEN", "is for development mode only");
    }
    let (delay, rate) = if mode.is_development() { (0, 0) } else { (3, 6_000) };
    Http {
        address,
        connections_max: reader.number("HTTP_CONNECTIONS_MAX", 10_000, 1..=1_000_000),
        body_bytes_max: reader.number("HTTP_BODY_BYTES_MAX", 1 << 20, 1_024..=(64 << 20)),
        header_timeout: reader.duration("HTTP_HEADER_TIMEOUT", Duration::from_secs(20)),
        body_timeout: reader.duration("HTTP_BODY_TIMEOUT", Duration::from_secs(15)),
        write_timeout: reader.duration("HTTP_WRITE_TIMEOUT", Duration::from_secs(20)),
        cors_allowed_origins: origins(reader),
        streams_max: reader.number("HTTP_STREAMS_MAX", 200, 1..=100_000),
        stream_retention: reader
            .duration("STREAM_RETENTION", Duration::from_secs(30 * 24 * 60 * 60)),
        shutdown_delay: reader.duration_or_none("SHUTDOWN_DELAY", Duration::from_secs(delay)),
        shutdown_timeout: reader.duration("SHUTDOWN_TIMEOUT", Duration::from_secs(20)),
        rate_requests: reader.number("RATE_LIMIT_REQUESTS", rate, 0..=1_000_000_000),
        rate_window: reader.duration("RATE_LIMIT_WINDOW", Duration::from_secs(60)),
        trusted_proxies: networks(reader, "TRUSTED_PROXIES"),
        tls: tls_files(reader),
        reveal_verification_token,
    }
}

/// Both files or none; and what is in them must be good.
fn tls_files(reader: &mut Reader<'_>) -> Option<tls::Files> {
    let mut path = |name| reader.text(name).map(PathBuf::from);
    let client_authority = path(tls::CLIENT_AUTHORITY);
    let (certificate, key) = match (path(tls::CERTIFICATE), path(tls::KEY)) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) if client_authority.is_none() => return None,
        (certificate, _) => {
            let missing = if certificate.is_none() { tls::CERTIFICATE } else { tls::KEY };
            reader.error(missing, "is required where TLS is spoken");
            return None;
        }
    };
    let files = tls::Files { certificate, key, client_authority };
    match files.check() {
        Ok(()) => Some(files),
        Err(tls::FileError { variable, problem }) => {
            reader.error(variable, problem);
            None
        }
    }
}

/// Whether credentials may go to an address: they travel encrypted, unless they do not leave this
/// machine.
fn keeps_secrets(url: &Url) -> bool {
    let is_local = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        _ => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && is_local)
}

fn traces(reader: &mut Reader<'_>) -> Option<Url> {
    const NAME: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    let url = Url::parse(&reader.text(NAME)?).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if url.is_none() {
        reader.error(NAME, "must be a collector's address (http://127.0.0.1:4318)");
    }
    url
}

fn keys(reader: &mut Reader<'_>, mode: Mode, data_dir: &Path) -> Option<Keys> {
    // All three are read before anything is decided, so that all three are reported.
    let master = reader.secret("MASTER_KEY", mode, data_dir);
    let token = reader.secret("TOKEN_KEY", mode, data_dir);
    let lookup = reader.secret("LOOKUP_KEY", mode, data_dir);
    Some(Keys { master: master?, token: token?, lookup: lookup? })
}

fn runtime(reader: &mut Reader<'_>) -> Runtime {
    let partitions = reader.optional_number("PARTITIONS", 1..=256);
    let memory_limit = reader.optional_number("MEMORY_LIMIT_BYTES", 0..=MEMORY_LIMIT_MAX);
    Runtime {
        partitions: partitions.and_then(|number| u16::try_from(number).ok()),
        mailbox_cap: reader.optional_number("MAILBOX_CAP", 1..=1_000_000),
        letters_max: reader.number("DLQ_LETTERS_MAX", 10_000, 1..=1_000_000),
        memory_limit: memory_limit.map(|bytes| bytes as u64),
        aggregate_idle_timeout: reader.optional_duration("AGGREGATE_IDLE_TIMEOUT"),
        event_type_prefix: reader.text_or("EVENT_TYPE_PREFIX", "souk"),
    }
}

fn retry(reader: &mut Reader<'_>) -> RetryPolicy {
    let default = RetryPolicy::default();
    let millis = |duration: Duration| usize::try_from(duration.as_millis()).unwrap_or(usize::MAX);
    let as_millis =
        |number: usize| Duration::from_millis(u64::try_from(number).unwrap_or(u64::MAX));
    let longest = millis(default.max_retry_delay);
    RetryPolicy {
        max_retries: reader.small("RETRY_MAX_RETRIES", default.max_retries),
        retry_delay: as_millis(reader.number(
            "RETRY_DELAY_MS",
            millis(default.retry_delay),
            1..=3_600_000,
        )),
        exponential_backoff: reader.flag("RETRY_EXPONENTIAL_BACKOFF", default.exponential_backoff),
        max_retry_delay: as_millis(reader.number("RETRY_MAX_DELAY_MS", longest, 1..=86_400_000)),
        ..default
    }
}

fn outbox(reader: &mut Reader<'_>) -> Outbox {
    let default = Outbox::default();
    Outbox {
        poll_interval: reader.duration("OUTBOX_POLL_INTERVAL", default.poll_interval),
        batch_size: reader.number("OUTBOX_BATCH_SIZE", default.batch_size, 1..=10_000),
        retries_max: reader.small("OUTBOX_MAX_RETRIES", default.retries_max),
    }
}

fn publishing(reader: &mut Reader<'_>) -> Publishing {
    let default = Publishing::default();
    let rate_window = reader.duration("PUBLISH_RATE_WINDOW", default.rate_window);
    if rate_window < Duration::from_secs(1) {
        reader.error("PUBLISH_RATE_WINDOW", "must be at least 1s");
    }
    Publishing {
        event_bytes_max: reader.number(
            "EVENT_BYTES_MAX",
            default.event_bytes_max,
            1_024..=(1 << 20),
        ),
        batch_max: reader.number("PUBLISH_BATCH_MAX", default.batch_max, 1..=2_000),
        rate_events: reader.number("PUBLISH_RATE_EVENTS", default.rate_events, 1..=100_000_000),
        rate_window,
        sequence_gap_timeout: reader.duration("SEQUENCE_GAP_TIMEOUT", default.sequence_gap_timeout),
    }
}

/// Origins as browsers send them: scheme, host, and a port that is not the scheme's own.
fn origins(reader: &mut Reader<'_>) -> Vec<String> {
    const NAME: &str = "CORS_ALLOWED_ORIGINS";
    let text = reader.text(NAME).unwrap_or_default();
    let origins = text.split(',').map(str::trim).filter(|origin| !origin.is_empty());
    let mut all = Vec::new();
    for origin in origins {
        let read = Url::parse(origin).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        if read.is_some_and(|url| url.origin().ascii_serialization() == origin) {
            all.push(origin.to_owned());
        } else {
            reader.error(NAME, "must be origins with commas between (https://shop.example.com)");
        }
    }
    all
}

fn webhooks(reader: &mut Reader<'_>, mode: Mode) -> Reach {
    let networks = networks(reader, "WEBHOOK_ALLOWED_NETWORKS");
    let allows_http = reader.flag("WEBHOOK_ALLOW_HTTP", mode.is_development());
    Reach { allows_http, networks }
}

fn networks(reader: &mut Reader<'_>, name: &'static str) -> Vec<IpNet> {
    let text = reader.text(name).unwrap_or_default();
    let networks = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    networks.map(str::parse).collect::<Result<_, _>>().unwrap_or_else(|_| {
        reader.error(name, "must be networks with commas between (10.1.0.0/16,fd00::/8)");
        Vec::new()
    })
}

#[cfg(feature = "chaos")]
fn chaos(reader: &mut Reader<'_>, mode: Mode) -> Chaos {
    let points = reader.text("SOUK_FAULT_POINTS");
    let record = reader.text("SOUK_SANDBOX_RECORD");
    for (name, value) in [("SOUK_FAULT_POINTS", &points), ("SOUK_SANDBOX_RECORD", &record)] {
        if value.is_some() && !mode.is_development() {
            reader.error(name, "is for development mode only");
        }
    }
    let fault_points = match points.as_deref().map(crate::points::parse) {
        None => Vec::new(),
        Some(Ok(armed)) => armed,
        Some(Err(problem)) => {
            reader.error("SOUK_FAULT_POINTS", problem.to_string());
            Vec::new()
        }
    };
    Chaos { fault_points, sandbox_record: record.map(PathBuf::from) }
}

fn log_level(reader: &mut Reader<'_>) -> String {
    let level = reader.text_or("LOG_LEVEL", "info");
    if tracing_subscriber::EnvFilter::try_new(&level).is_err() {
        reader.error("LOG_LEVEL", "must be a level (info) or a filter (info,souk=debug)");
    }
    level
}

fn log_to(reader: &mut Reader<'_>) -> LogTo {
    match reader.text_or("LOG_TO", "stderr").as_str() {
        "stderr" => LogTo::StandardError,
        "stdout" => LogTo::StandardOutput,
        _ => {
            reader.error("LOG_TO", "must be stderr or stdout");
            LogTo::StandardError
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(vars: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let read = |name: &str| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Config::load(&Source::new(&read))
    }

    #[test]
    fn the_defaults_are_a_development_server_on_loopback() {
        let dir = tempfile::tempdir().unwrap();
        let config = load(&[("DATA_DIR", dir.path().to_str().unwrap())]).unwrap();
        assert_eq!(config.mode, Mode::Development);
        assert_eq!(config.http.address.to_string(), "127.0.0.1:8080");
        assert_eq!(config.retry, RetryPolicy::default());
        assert_eq!(config.outbox, Outbox::default());
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let errors = load(&[
            ("APP_ENV", "production"),
            ("HTTP_ADDR", "nowhere"),
            ("DATABASE_URL", "postgres://souk:hunter2@localhost:none/souk"),
            ("PARTITIONS", "0"),
            ("MASTER_KEY", "c2hvcnQ="),
        ])
        .unwrap_err();
        let text = errors.to_string();
        let lines: Vec<_> = text.lines().collect();
        for name in
            ["HTTP_ADDR", "DATABASE_URL", "PARTITIONS", "MASTER_KEY", "TOKEN_KEY", "LOOKUP_KEY"]
        {
            assert_eq!(
                lines.iter().filter(|line| line.starts_with(&format!("{name}: "))).count(),
                1,
                "{name} in {text}"
            );
        }
        assert!(!text.contains("c2hvcnQ="), "values of secrets are never repeated");
        assert!(!text.contains("hunter2"), "nor is a password: {text}");
    }

    #[test]
    fn handlers_are_retried_as_told() {
        let dir = tempfile::tempdir().unwrap();
        let config = load(&[
            ("DATA_DIR", dir.path().to_str().unwrap()),
            ("RETRY_MAX_RETRIES", "7"),
            ("RETRY_DELAY_MS", "20"),
            ("RETRY_EXPONENTIAL_BACKOFF", "false"),
            ("DATABASE_URL", "sqlite:///var/lib/souk/j.db"),
        ]);
        let config = config.unwrap();
        let policy = RetryPolicy {
            max_retries: 7,
            retry_delay: Duration::from_millis(20),
            exponential_backoff: false,
            ..RetryPolicy::default()
        };
        assert_eq!(config.retry, policy);
        let path = Path::new("/var/lib/souk/j.db").to_owned();
        assert_eq!(config.storage.database, Database::Sqlite(path));
    }

    #[test]
    fn webhooks_reach_what_is_named_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let folder = ("DATA_DIR", dir.path().to_str().unwrap());
        let reach = load(&[folder]).unwrap().webhooks;
        assert_eq!(reach, Reach { allows_http: true, networks: Vec::new() });
        let networks = ("WEBHOOK_ALLOWED_NETWORKS", "10.1.0.0/16, fd00::/8");
        let reach = load(&[folder, networks, ("WEBHOOK_ALLOW_HTTP", "false")]).unwrap().webhooks;
        assert!(!reach.allows_http && reach.networks.len() == 2);
        let errors = load(&[folder, ("WEBHOOK_ALLOWED_NETWORKS", "10.1.0.0")]).unwrap_err();
        assert!(errors.to_string().starts_with("WEBHOOK_ALLOWED_NETWORKS: "), "{errors}");
    }

    #[test]
    fn momo_is_offered_when_everything_about_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let folder = ("DATA_DIR", dir.path().to_str().unwrap());
        assert_eq!(load(&[folder]).unwrap().momo, None);
        let ipn_url = "https://shop.example/api/v1/payments/webhook/momo";
        let all = [
            folder,
            ("MOMO_PARTNER_CODE", "MOMO"),
            ("MOMO_ACCESS_KEY", "F8BBA842ECF85"),
            ("MOMO_SECRET_KEY", "hunter2"),
            ("MOMO_IPN_URL", ipn_url),
        ];
        let momo = load(&all).unwrap().momo.unwrap();
        assert_eq!(momo.endpoint, "https://test-payment.momo.vn");
        assert_eq!(momo.secret_key.expose(), "hunter2");
        for left_out in 2..all.len() {
            let mut some = all.to_vec();
            let (name, _) = some.remove(left_out);
            let errors = load(&some).unwrap_err().to_string();
            assert!(errors.starts_with(&format!("{name}: ")), "{errors}");
            assert!(!errors.contains("hunter2"), "{errors}");
        }
        for (name, value) in [
            ("MOMO_ENDPOINT", "payment.momo.vn"),
            ("MOMO_ENDPOINT", "https://payment.momo.vn/v2"),
            ("MOMO_IPN_URL", "https://shop.example/momo?key=1"),
            ("MOMO_IPN_URL", "https://cửa-hàng.example/momo"),
            ("MOMO_REDIRECT_URL", "paid"),
            ("MOMO_LANGUAGE", "fr"),
            ("MOMO_TIMEOUT", "1h"),
        ] {
            let mut some: Vec<_> = all.iter().copied().filter(|(of, _)| *of != name).collect();
            some.push((name, value));
            let errors = load(&some).unwrap_err().to_string();
            assert!(errors.starts_with(&format!("{name}: ")), "{name}={value}: {errors}");
        }
        let mut production = all.to_vec();
        production.push(("APP_ENV", "production"));
        let errors = load(&production).unwrap_err().to_string();
        assert!(errors.contains("MOMO_ENDPOINT: is required in production"), "{errors}");
    }

    #[cfg(feature = "chaos")]
    #[test]
    fn fault_points_are_for_development() {
        let dir = tempfile::tempdir().unwrap();
        let folder = ("DATA_DIR", dir.path().to_str().unwrap());
        let armed = ("SOUK_FAULT_POINTS", "writer.before_reply:abort:after=17");
        assert_eq!(load(&[folder, armed]).unwrap().chaos.fault_points[0].after, 17);
        let errors = load(&[folder, armed, ("APP_ENV", "production")]).unwrap_err().to_string();
        assert!(errors.contains("SOUK_FAULT_POINTS: is for development mode only"), "{errors}");
        let errors = load(&[folder, ("SOUK_FAULT_POINTS", "nowhere")]).unwrap_err().to_string();
        assert!(errors.contains("there is no such fault point"), "{errors}");
    }

    #[test]
    fn development_never_listens_to_the_world() {
        let dir = tempfile::tempdir().unwrap();
        let folder = ("DATA_DIR", dir.path().to_str().unwrap());
        let errors = load(&[folder, ("HTTP_ADDR", "0.0.0.0:80")]).unwrap_err();
        assert!(errors.to_string().contains("loopback"));
    }

    #[test]
    fn made_up_keys_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let vars = [("DATA_DIR", dir.path().to_str().unwrap())];
        let (first, second) = (load(&vars).unwrap(), load(&vars).unwrap());
        assert_eq!(first.keys.master.bytes(), second.keys.master.bytes());
        assert_ne!(first.keys.master.bytes(), first.keys.token.bytes());
        assert!(!format!("{first:?}").contains(&first.keys.token.to_hex()));
    }

    #[cfg(unix)]
    #[test]
    fn made_up_keys_are_readable_by_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        load(&[("DATA_DIR", dir.path().to_str().unwrap())]).unwrap();
        for name in ["master_key", "token_key", "lookup_key"] {
            let mode = std::fs::metadata(dir.path().join("keys").join(name)).unwrap().permissions();
            assert_eq!(mode.mode() & 0o777, 0o600, "{name}");
        }
    }
}
