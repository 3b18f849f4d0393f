//! What no honest client sends.

use bytes::Bytes;
use proto::v1;
use tonic::Code;

use super::follower::Follower;
use super::{ROOT, apply, apply_one, delete, folder, is_conflict, moved};
use crate::cluster::{Client, random, request_id};

async fn changes(
    client: &Client,
    cursor: Bytes,
    count_max: u32,
) -> Result<v1::ChangesResponse, tonic::Status> {
    let request = client.request(v1::ChangesRequest { cursor, count_max, ..v1::ChangesRequest::default() });
    Ok(client.sync().changes(request).await?.into_inner())
}

async fn below(client: &Client, entry_id: u64, page: Bytes) -> Result<v1::ListBelowResponse, tonic::Status> {
    let request = client.request(v1::ListBelowRequest { entry_id, page, count_max: 1, cursor: Bytes::new() });
    Ok(client.sync().list_below(request).await?.into_inner())
}

fn bent(bytes: &Bytes) -> Vec<Bytes> {
    let flipped = |at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes.into()
    };
    let mut all: Vec<Bytes> = (0..bytes.len()).map(flipped).collect();
    all.push(bytes.slice(1..));
    all.push(bytes.slice(..bytes.len() - 1));
    all.push([bytes, &b"x"[..]].concat().into());
    all.push(Bytes::copy_from_slice(&random::<65>()));
    all.push(Bytes::from(vec![0; 100_000]));
    all
}

pub(crate) async fn requests_are_refused(client: &Client, other: &Client) {
    let (mut mine, mut theirs) = (Follower::default(), Follower::default());
    mine.catch_up(client, 1000).await;
    theirs.catch_up(other, 1000).await;
    for cursor in bent(&mine.cursor).into_iter().chain([theirs.cursor.clone()]) {
        let refused = changes(client, cursor, 10).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    assert_eq!(changes(client, Bytes::new(), 10_001).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(changes(client, Bytes::new(), 10_000).await.is_ok());

    let page = below(client, ROOT, Bytes::new()).await.unwrap().next_page;
    for page in bent(&page).into_iter().chain([mine.cursor.clone()]) {
        assert_eq!(below(client, ROOT, page).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(below(other, ROOT, page.clone()).await.unwrap_err().code(), Code::InvalidArgument);
    for cursor in bent(&mine.cursor).into_iter().chain([theirs.cursor.clone()]) {
        let request = v1::ListBelowRequest { entry_id: ROOT, cursor, ..v1::ListBelowRequest::default() };
        let refused = client.sync().list_below(client.request(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let folder_of_mine = mine.tree.values().find(|entry| entry.kind == 2).unwrap().clone();
    let elsewhere = below(client, folder_of_mine.id, page).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::InvalidArgument, "a page of another listing");
    assert_eq!(below(client, 999_999, Bytes::new()).await.unwrap_err().code(), Code::NotFound);

    // Ids mean nothing in another account's tree.
    let foreign =
        apply(other, vec![moved(&folder_of_mine, ROOT, "stolen"), delete(&folder_of_mine, true, 0)]);
    assert!(foreign.await.iter().all(is_conflict));
    let root = v1::Entry { id: ROOT, parent: ROOT, ..v1::Entry::default() };
    for action in
        [delete(&root, true, u64::MAX), moved(&root, ROOT, "x"), folder(ROOT, "a/b"), folder(ROOT, "..")]
    {
        let refused = apply_one(client, action).await.unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument as u32, "{refused:?}");
    }
    let nothing = v1::ApplyRequest {
        request_id: request_id(),
        actions: vec![v1::Action { action: None }],
        ..Default::default()
    };
    let nothing = client.sync().apply(client.request(nothing)).await.unwrap().into_inner();
    assert!(matches!(nothing.results[0].result, Some(v1::apply_result::Result::Error(_))));
    let action = v1::Action { action: Some(folder(ROOT, "many")) };
    let many =
        v1::ApplyRequest { request_id: request_id(), actions: vec![action; 1001], ..Default::default() };
    assert_eq!(client.sync().apply(client.request(many)).await.unwrap_err().code(), Code::InvalidArgument);
    // One request id for two requests.
    let used = request_id();
    super::apply_as(client, used.clone(), vec![folder(ROOT, "used once")]).await;
    let action = v1::Action { action: Some(folder(ROOT, "used twice")) };
    let again = v1::ApplyRequest { request_id: used, actions: vec![action; 2], ..Default::default() };
    assert_eq!(client.sync().apply(client.request(again)).await.unwrap_err().code(), Code::InvalidArgument);
    let forged = client.with_token(format!("{}x", client.token));
    assert_eq!(changes(&forged, Bytes::new(), 1).await.unwrap_err().code(), Code::Unauthenticated);
}
