//! Requests that are repeated after something else has come to the places that they name.

use proto::v1;
use tonic::{Code, Status};

use crate::cluster::{Client, request_id};
use crate::{entry, get, mkdir, noise, put};

async fn rename(client: &Client, from: &str, to: &str) {
    let (from, to) = (from.to_owned(), to.to_owned());
    let message = v1::MoveEntryRequest { request_id: request_id(), from, to, replace: false };
    client.files().move_entry(client.request(message)).await.unwrap();
}

async fn remove_versions(
    client: &Client,
    message: &v1::RemoveVersionsRequest,
) -> Result<v1::RemoveVersionsResponse, Status> {
    Ok(client.files().remove_versions(client.request(message.clone())).await?.into_inner())
}

async fn version_count(client: &Client, path: &str) -> usize {
    let message = v1::ListVersionsRequest { path: path.to_owned() };
    client.files().list_versions(client.request(message)).await.unwrap().into_inner().versions.len()
}

async fn put_versions(client: &Client, path: &str, count: u64) {
    for number in 0..count {
        put(client, path, &noise(800 + number, 1000)).await.unwrap();
    }
}

async fn versions_of_another_file_stay(client: &Client) {
    put_versions(client, "/r/versions", 3).await;
    let message = v1::RemoveVersionsRequest {
        request_id: request_id(),
        path: "/r/versions".to_owned(),
        keep_newest: 1,
        ..v1::RemoveVersionsRequest::default()
    };
    let first = remove_versions(client, &message).await.unwrap();
    assert_eq!(first.versions, 2);
    put_versions(client, "/r/versions", 1).await;
    assert_eq!(
        remove_versions(client, &message).await.unwrap(),
        first,
        "a repetition gives the first answer"
    );
    assert_eq!(version_count(client, "/r/versions").await, 2);

    rename(client, "/r/versions", "/r/moved").await;
    put_versions(client, "/r/versions", 3).await;
    let refused = remove_versions(client, &message).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("/r/versions"), "{refused}");
    for (path, count) in [("/r/versions", 3), ("/r/moved", 2)] {
        assert_eq!(version_count(client, path).await, count, "{path}");
    }
}

async fn attributes_of_what_has_gone_are_told_as_before(client: &Client) {
    for path in ["/r/set-1", "/r/set-2"] {
        mkdir(client, path, false).await.unwrap();
    }
    let set = |path: &str| v1::SetAttributes { path: path.to_owned(), mode: 0o711, mtime_ns: 77 };
    let entries = ["/r/set-1", "/r/set-2", "/r/set-3"].map(set).to_vec();
    let message = v1::SetAttributesRequest { request_id: request_id(), entries };
    let ask = || async {
        let answer = client.files().set_attributes(client.request(message.clone())).await;
        answer.unwrap().into_inner().results
    };
    let first = ask().await;
    let is_error =
        |result: &v1::EntryResult| matches!(result.result, Some(v1::entry_result::Result::Error(_)));
    assert_eq!(first.iter().map(is_error).collect::<Vec<_>>(), [false, false, true]);
    rename(client, "/r/set-1", "/r/elsewhere").await;
    mkdir(client, "/r/set-3", false).await.unwrap();
    assert_eq!(ask().await, first);
}

async fn a_copy_of_what_has_gone_is_told_as_before(client: &Client) {
    let bytes = noise(810, 5000);
    put(client, "/r/original", &bytes).await.unwrap();
    mkdir(client, "/r/folder", false).await.unwrap();
    let copy = |from: &str, to: &str| v1::CopyEntryRequest {
        request_id: request_id(),
        from: from.to_owned(),
        to: to.to_owned(),
        replace: false,
    };
    let ask = |message: &v1::CopyEntryRequest| {
        let (mut files, request) = (client.files(), client.request(message.clone()));
        async move { Ok::<_, Status>(files.copy_entry(request).await?.into_inner()) }
    };
    let (file, folder) = (copy("/r/original", "/r/copy"), copy("/r/folder", "/r/folder-copy"));
    let first = ask(&file).await.unwrap();
    assert_eq!((first.files, first.bytes), (1, 5000));
    ask(&folder).await.unwrap();
    rename(client, "/r/original", "/r/original-moved").await;
    rename(client, "/r/folder", "/r/folder-moved").await;
    assert_eq!(ask(&file).await.unwrap(), first);
    assert_eq!(get(client, "/r/copy").await.unwrap(), bytes);
    assert_eq!(ask(&folder).await.unwrap_err().code(), Code::NotFound, "whether all was copied is not known");
    let new = copy("/r/original", "/r/new");
    assert_eq!(ask(&new).await.unwrap_err().code(), Code::NotFound);
    assert!(entry(client, "/r/new").await.is_err());
}

pub(crate) async fn repetitions_are_about_what_was_meant(client: &Client) {
    mkdir(client, "/r", false).await.unwrap();
    versions_of_another_file_stay(client).await;
    attributes_of_what_has_gone_are_told_as_before(client).await;
    a_copy_of_what_has_gone_is_told_as_before(client).await;
}
