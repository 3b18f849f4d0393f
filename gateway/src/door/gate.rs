//! Who may ask: every request's caller is known before a byte of its body is read and before anything is taken that
//! others share.
//!
//! Invariants:
//! - Only [`Kind::SignIn`] and [`Kind::Open`] are served without a right token, within the bounds for strangers.
//! - What checks the token itself ([`Kind::checks_inside`]) is let in by one that was right within [`CLAIM_FRESH`], and is
//!   given no [`Caller`] but in a [`Claim`].
//! - What a request takes is counted to its account (to its address, for strangers) first, and to all second.
//! - Who owes too much waits, and is refused, before a byte of what it wants changed is read.
//! - A wrong token costs its address some of its tries; a token that was right before costs none, so nobody is hindered
//!   by who else comes from the same address.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::ids::AccountId;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use metaraft::model::nursery::TokenGuard;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;

use crate::auth::{self, Caller, Claim};
use crate::config::Limits;
use crate::core::Core;
use crate::door::address::Address;
use crate::door::bodies::{Beginning, Counting, Held, RequestBody, ResponseBody, Rules, UNIT_BYTES};
use crate::door::chunk_messages::Messages;
use crate::door::connections::{Connection, OpenStream};
use crate::door::meter::Meter;
use crate::door::recent::Recent;
use crate::door::shares::{Share, Shares};
use crate::failure::Failure;
use crate::live::LiveDevice;
use crate::token::Token;

/// How long a token that was never seen waits to be looked at.
const TOKEN_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long the question for a page of a list waits for its turn; and when it is worth another try.
const LIST_WAIT_MAX: Duration = Duration::from_secs(10);
const LIST_RETRY_AFTER: Duration = Duration::from_secs(2);

/// Tokens of one address that wait for that, and of all.
const TOKENS_WAITING_MAX: u64 = 128;
const TOKENS_WAITING_ALL_MAX: u64 = 2048;

/// How a request is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Shows a password.
    SignIn,
    /// Says what everybody may know: health, reflection.
    Open,
    /// Waits for changes: costs little, and is counted apart from who works.
    Wait,
    /// Sends chunks, which are counted by who takes them.
    Put,
    /// Takes a file's bytes.
    Get,
    /// Takes the bytes of one file, which is looked up with the token.
    GetFile,
    /// Asks for a page of a list, which may be a large answer to a small question.
    List,
    /// Makes or changes something, if it is not refused: not read while too much was refused lately. Deleting is none: it
    /// may be what the refusals ask for.
    Change,
    /// The same, of one file that is put with the token.
    PutFile,
    /// The same, with long lists of chunks maybe: not read while too many were sent lately.
    Begin,
    /// Of an administrator.
    Admin,
    /// Looks at one entry, with the token.
    Look,
    /// Anything else of an account.
    Other,
}

impl Kind {
    fn of(path: &str) -> Self {
        match path {
            "/keepstone.v1.Accounts/SignIn" => Self::SignIn,
            "/keepstone.v1.Sync/Watch" | "/keepstone.v1.Sync/WaitForChange" => Self::Wait,
            "/keepstone.v1.Files/PutChunks" => Self::Put,
            "/keepstone.v1.Files/BeginUploads" => Self::Begin,
            "/keepstone.v1.Files/PutFile" => Self::PutFile,
            "/keepstone.v1.Files/Download" => Self::GetFile,
            "/keepstone.v1.Files/GetEntry" => Self::Look,
            "/keepstone.v1.Files/DownloadMany" | "/keepstone.v1.Sync/GetManifest" => Self::Get,
            "/keepstone.v1.Files/ListFolder"
            | "/keepstone.v1.Files/ListVersions"
            | "/keepstone.v1.Files/ListTrash"
            | "/keepstone.v1.Sync/Changes"
            | "/keepstone.v1.Sync/ListBelow"
            | "/keepstone.v1.Accounts/ListDevices" => Self::List,
            "/keepstone.v1.Files/CommitUploads"
            | "/keepstone.v1.Files/CreateEntries"
            | "/keepstone.v1.Files/SetAttributes"
            | "/keepstone.v1.Files/MoveEntry"
            | "/keepstone.v1.Files/CopyEntry"
            | "/keepstone.v1.Files/RestoreVersion"
            | "/keepstone.v1.Sync/Apply" => Self::Change,
            _ if path.starts_with("/keepstone.v1.Admin/") => Self::Admin,
            _ if path.starts_with("/grpc.health.v1.Health/") || path.starts_with("/grpc.reflection.") => {
                Self::Open
            }
            _ => Self::Other,
        }
    }

    /// Whether the token is checked by what does the work, if it was right a moment ago.
    fn checks_inside(self) -> bool {
        matches!(self, Self::GetFile | Self::PutFile | Self::Look)
    }

    /// Whether it gives a file's bytes.
    fn reads(self) -> bool {
        matches!(self, Self::Get | Self::GetFile)
    }
}

/// How long a token that was right is not checked before a request that checks it itself.
const CLAIM_FRESH: Duration = Duration::from_secs(10);

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) address: Address,
    /// The number of its connection.
    pub(crate) connection: u64,
}

/// What requests take.
struct Taken {
    requests: Shares<AccountId>,
    lists: Shares<AccountId>,
    request_bytes: Arc<Shares<AccountId>>,
    chunk_bytes: Arc<Shares<AccountId>>,
    answer_bytes: Arc<Shares<AccountId>>,
    sign_ins: Shares<Address>,
    open: Shares<Address>,
    tokens_waiting: Shares<Address>,
    tokens: Mutex<Meter<Address>>,
    /// Hashes of tokens that were right lately, whose they are, and when.
    proven: Mutex<Recent<[u8; 32], (Caller, Instant)>>,
}

/// What a request holds until it is answered.
type Guards = (OpenStream, Option<Share>, Held, Option<LiveDevice>);

/// The gate before all services. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gate {
    routes: Routes,
    core: Arc<Core>,
    limits: Arc<Limits>,
    taken: Arc<Taken>,
}

/// A request that may go on.
struct Admitted {
    share: Option<Share>,
    held: Held,
    rules: Rules,
    claim: Option<Claim>,
    /// For what stays open: it ends when its device may not go on.
    live: Option<LiveDevice>,
    counting: Option<Counting>,
    ending_after: Option<Duration>,
}

/// The answer to a request that is not let in. Its body is dropped unread, which resets its stream.
fn unread(failure: Failure, stream: OpenStream) -> Response<ResponseBody<Guards>> {
    let guards = (stream, None, Held::default(), None);
    Status::from(failure).into_http::<Body>().map(|body| ResponseBody::new(body, None, guards))
}

impl Gate {
    pub(crate) fn new(routes: Routes, core: Arc<Core>, limits: &Limits) -> Self {
        let units = |bytes: u64| bytes.div_ceil(UNIT_BYTES);
        let of_bytes = |own: u64, all: u64| Arc::new(Shares::new(units(own), units(all)));
        let period = Duration::from_secs(1)
            / u32::try_from(limits.address_tokens_per_second.max(1)).unwrap_or(u32::MAX);
        let taken = Taken {
            requests: Shares::new(limits.account_requests_max, limits.requests_max),
            lists: Shares::new(limits.account_lists_max, limits.lists_max),
            request_bytes: of_bytes(limits.account_request_bytes_max, limits.request_bytes_max),
            chunk_bytes: of_bytes(limits.account_chunk_message_bytes_max, limits.chunk_message_bytes_max),
            answer_bytes: of_bytes(limits.account_answer_bytes_max, limits.answer_bytes_max),
            sign_ins: Shares::new(limits.address_sign_ins_max, limits.sign_ins_max),
            open: Shares::new(limits.address_open_requests_max, limits.open_requests_max),
            tokens_waiting: Shares::new(TOKENS_WAITING_MAX, TOKENS_WAITING_ALL_MAX),
            tokens: Mutex::new(Meter::new(limits.address_tokens_burst, period)),
            proven: Mutex::default(),
        };
        Self { routes, core, limits: Arc::new(limits.clone()), taken: Arc::new(taken) }
    }

    /// Serves one request. What it was refused for is in the answer.
    pub(crate) async fn serve(
        mut self,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Response<ResponseBody<Guards>> {
        let stream = connection.begin();
        let kind = Kind::of(request.uri().path());
        let admitted = match kind {
            Kind::SignIn | Kind::Open => self.admit_stranger(kind, &connection),
            _ => self.admit_caller(kind, request.headers(), &connection).await,
        };
        let Admitted { share, held, rules, claim, live, counting, ending_after } = match admitted {
            Ok(admitted) => admitted,
            Err(failure) => return unread(failure, stream),
        };
        let account = claim.as_ref().map(|claim| claim.caller.account);
        // What is waited for here is no time of the body's.
        let _turn = match self.turn(kind, account).await {
            Ok(turn) => turn,
            Err(failure) => return unread(failure, stream),
        };
        let mut request = request.map(|body| Body::new(RequestBody::new(body, rules)));
        request
            .extensions_mut()
            .insert(Origin { address: connection.address, connection: connection.number });
        let claimed = claim.as_ref().and_then(|claim| claim.token).map(|token| token.token_hash);
        match claim {
            Some(claim) if kind.checks_inside() => drop(request.extensions_mut().insert(claim)),
            Some(claim) => drop(request.extensions_mut().insert(claim.caller)),
            None => {}
        }
        let ended = live.as_ref().map(|live| live.ended.clone());
        let response = match (kind, &ended) {
            // Reading and waiting may be broken off at any moment; what changes something is not.
            (Kind::Wait | Kind::Get | Kind::GetFile | Kind::Put, Some(ended)) => tokio::select! {
                response = self.routes.call(request) => response,
                failure = ended.wait() => Ok(Status::from(failure).into_http()),
            },
            _ => self.routes.call(request).await,
        };
        let response = match response {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if let Some(token) = claimed
            && Status::from_header_map(response.headers())
                .is_some_and(|status| status.code() == Code::Unauthenticated)
        {
            self.proven().remove(&token);
        }
        let beginning = response.extensions().get::<Beginning>().cloned();
        response.map(|body| {
            let body = ResponseBody::new(body, counting, (stream, share, held, live));
            body.ending_after(ending_after).ending_with(ended).telling(beginning)
        })
    }

    /// Waits until such a request may be served, and gives what it takes for as long; refuses who waited for too long.
    async fn turn(&self, kind: Kind, account: Option<AccountId>) -> Result<Option<Share>, Failure> {
        let Some(account) = account else { return Ok(None) };
        match kind {
            Kind::List => self.turn_to_list(account).await.map(Some),
            Kind::Change | Kind::PutFile => self.core.refusals.check(account).await.map(|()| None),
            Kind::Begin => {
                self.core.refusals.check(account).await?;
                self.core.chunk_lists.check(account).await.map(|()| None)
            }
            Kind::SignIn
            | Kind::Open
            | Kind::Wait
            | Kind::Put
            | Kind::Get
            | Kind::GetFile
            | Kind::Look
            | Kind::Admin
            | Kind::Other => Ok(None),
        }
    }

    /// Waits until another page of a list may be asked for by an account.
    async fn turn_to_list(&self, account: AccountId) -> Result<Share, Failure> {
        tokio::time::timeout(LIST_WAIT_MAX, self.taken.lists.take(account, 1)).await.map_err(|_elapsed| {
            Failure::limit("too many lists are asked for at once", "account_lists_max", LIST_RETRY_AFTER)
        })
    }

    fn admit_stranger(&self, kind: Kind, connection: &Connection) -> Result<Admitted, Failure> {
        let (shares, what, own, all) = if kind == Kind::SignIn {
            (&self.taken.sign_ins, "sign-ins", "address_sign_ins_max", "sign_ins_max")
        } else {
            (&self.taken.open, "requests", "address_open_requests_max", "open_requests_max")
        };
        let share = shares.try_take(connection.address, 1);
        let share = share.map_err(|full| Failure::full(what, full, own, all))?;
        let rules = Rules::Stranger {
            bytes_max: self.limits.stranger_body_bytes_max,
            seconds_max: self.limits.stranger_body_seconds_max,
        };
        let open_for = Duration::from_secs(self.limits.open_request_seconds_max);
        Ok(Admitted {
            share: Some(share),
            held: Held::default(),
            rules,
            claim: None,
            live: None,
            counting: None,
            ending_after: (kind == Kind::Open).then_some(open_for),
        })
    }

    async fn admit_caller(
        &self,
        kind: Kind,
        headers: &HeaderMap,
        connection: &Connection,
    ) -> Result<Admitted, Failure> {
        let token = auth::token_of(headers)?;
        let stays_open = kind.reads() || matches!(kind, Kind::Wait | Kind::Put | Kind::Admin);
        let live = stays_open.then(|| self.core.live.enter(token.account, token.device));
        let claim = self.claim(kind, token, connection).await?;
        let caller = &claim.caller;
        if kind == Kind::Admin {
            caller.require_admin()?;
        }
        if !connection.prove(caller.account) {
            let what = "too many connections of yours";
            return Err(Failure::limit(what, "account_connections_max", Duration::from_secs(5)));
        }
        let (shares, what, own, all) = match kind {
            Kind::Wait => (&self.core.waiters, "watchers", "account_waiters_max", "waiters_max"),
            _ => (&self.taken.requests, "requests under way", "account_requests_max", "requests_max"),
        };
        let share = shares.try_take(caller.account, 1);
        let share = Some(share.map_err(|full| Failure::full(what, full, own, all))?);
        let held = Held::default();
        let idle_max = Duration::from_secs(self.limits.body_idle_seconds_max);
        let rules = match kind {
            Kind::Put => Rules::Stream {
                messages: Messages::new(caller.account, Arc::clone(&self.taken.chunk_bytes)),
                idle_max,
            },
            _ => Rules::Message {
                account: caller.account,
                bytes: Arc::clone(&self.taken.request_bytes),
                held: Arc::clone(&held),
                idle_max,
                pace: self.limits.body_bytes_per_second_min,
            },
        };
        let counting = Counting {
            account: caller.account,
            shares: Arc::clone(&self.taken.answer_bytes),
            stream: kind.reads(),
        };
        Ok(Admitted {
            share,
            held,
            rules,
            claim: Some(claim),
            live,
            counting: Some(counting),
            ending_after: None,
        })
    }

    /// Who shows a token, which may be left to the request to check.
    async fn claim(&self, kind: Kind, token: Token, connection: &Connection) -> Result<Claim, Failure> {
        if kind.checks_inside()
            && let Some(claim) = self.lately(&token)
        {
            return Ok(claim);
        }
        let caller = self.caller(token, connection).await?;
        Ok(Claim { caller, token: None })
    }

    /// Who showed this very token a moment ago, if its account and its tree are one group's.
    fn lately(&self, token: &Token) -> Option<Claim> {
        let token_hash = token.hash();
        let (caller, since) = self.proven().get(&token_hash).cloned()?;
        let Caller { account, device, namespace, .. } = caller;
        let same = account == token.account && device == token.device;
        let together = self.core.meta.together(account.slot(), namespace.slot()).unwrap_or(false);
        let usable = same && together && since.elapsed() < CLAIM_FRESH;
        usable.then_some(Claim { caller, token: Some(TokenGuard { account, device, token_hash }) })
    }

    fn proven(&self) -> std::sync::MutexGuard<'_, Recent<[u8; 32], (Caller, Instant)>> {
        // Held for a look-up.
        self.taken.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who shows a token: checked against the cluster, as every request's is.
    async fn caller(&self, token: Token, connection: &Connection) -> Result<Caller, Failure> {
        let hash = token.hash();
        if self.proven().contains(&hash) {
            let checked = auth::check(&self.core.meta, token).await;
            match &checked {
                Ok(caller) => self.proven().insert(hash, (caller.clone(), Instant::now())),
                Err(failure) if failure.code == Code::Unauthenticated => self.proven().remove(&hash),
                Err(_) => {}
            }
            return checked;
        }
        self.take_token_try(connection.address).await?;
        let checked = auth::check(&self.core.meta, token).await;
        if !matches!(&checked, Err(failure) if failure.code == Code::Unauthenticated) {
            self.tokens().give_back(connection.address);
        }
        if let Ok(caller) = &checked {
            self.proven().insert(hash, (caller.clone(), Instant::now()));
        }
        checked
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Meter<Address>> {
        // Held for a look-up.
        self.taken.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `address` may show another token that was never seen.
    async fn take_token_try(&self, address: Address) -> Result<(), Failure> {
        let limit = |after| {
            let what = "too many wrong tokens from your address";
            Failure::limit(what, "address_tokens_per_second", after)
        };
        let Err(mut wait) = self.tokens().take(address, Instant::now()) else { return Ok(()) };
        let _waiting =
            self.taken.tokens_waiting.try_take(address, 1).map_err(|_full| limit(TOKEN_WAIT_MAX))?;
        let deadline = Instant::now() + TOKEN_WAIT_MAX;
        loop {
            if Instant::now() + wait > deadline {
                return Err(limit(TOKEN_WAIT_MAX));
            }
            tokio::time::sleep(wait).await;
            match self.tokens().take(address, Instant::now()) {
                Ok(()) => return Ok(()),
                Err(longer) => wait = longer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_everybody_may_know_needs_no_token() {
        let open = ["/keepstone.v1.Accounts/SignIn", "/grpc.health.v1.Health/Check"];
        assert_eq!(open.map(Kind::of), [Kind::SignIn, Kind::Open]);
        for closed in ["/keepstone.v1.Accounts/WhoAmI", "/keepstone.v1.Files/UploadStatus", "/", "", "/x/y"] {
            assert_eq!(Kind::of(closed), Kind::Other, "{closed}");
        }
        assert_eq!(Kind::of("/keepstone.v1.Admin/Status"), Kind::Admin);
    }

    #[test]
    fn whoever_owes_may_still_read_and_delete() {
        let of = |name: &str| Kind::of(&format!("/keepstone.v1.{name}"));
        assert_eq!(of("Files/BeginUploads"), Kind::Begin);
        assert_eq!(of("Files/PutFile"), Kind::PutFile);
        let changes =
            ["CommitUploads", "CreateEntries", "SetAttributes", "MoveEntry", "CopyEntry", "RestoreVersion"];
        for name in changes {
            assert_eq!(of(&format!("Files/{name}")), Kind::Change, "{name}");
        }
        assert_eq!(of("Sync/Apply"), Kind::Change);
        assert_eq!(of("Files/GetEntry"), Kind::Look);
        for name in ["DeleteEntry", "RemoveVersions", "PurgeTrash", "AbortUpload"] {
            assert_eq!(of(&format!("Files/{name}")), Kind::Other, "{name}");
        }
    }
}
