//! Rules of the decoder, each with the words it refuses with.
