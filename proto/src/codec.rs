//! How messages that carry payload are written: into memory of the right size at once.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder};

/// As tonic's own, but a message is written into memory that was asked for once. By itself the memory grows behind the
/// payload, when the field after it is written, and all of the payload is copied again.
#[derive(Debug)]
pub struct PayloadCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for PayloadCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for PayloadCodec<T, U>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = PayloadEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        PayloadEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::default())
    }
}

/// Writes messages of type `T`.
#[derive(Debug)]
pub struct PayloadEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for PayloadEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}
