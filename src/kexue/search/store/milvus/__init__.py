"""A store in a Milvus server, or in a file of Milvus Lite.

An address is one of::

    milvus://host:19530/collection          a server
    milvus+https://host:19530/collection    the same over TLS
    milvus:///folder/file.db#collection     Milvus Lite, in this process, in a file

The token of a server ("user:password", or an API key) comes from the environment variable KEXUE_MILVUS_TOKEN alone.

An index is two collections. ``collection`` holds the head, one row that describes the store, and the large values of
its metadata in pieces; ``collection_documents_<16 hex>``, which the head names, holds one row per document. Milvus
replaces a row whole, so the head changes atomically, but it has no transactions beyond a row. The
consequences, compared with the SQLite store, and what is done about them:

- A write puts the pieces, then the head, then the documents, up to 16 MiB per request. An interrupted write leaves the
  metadata ahead of the documents, and only some of the documents written; never vectors of a space that the head does
  not record. Repeating the call completes it.
- `expect` is compared before the head is written, and the head is read again afterwards. Two writers can still
  interfere between the head and the documents: let one process write at a time.
- Readers see changes immediately (consistency level Strong), but may see a write in progress.
- An acknowledged write is in the log of a server. Milvus Lite leaves its log to the operating system: an acknowledged
  write survives a crash of the process, but not always one of the machine.
- A document has one vector: an index whose long texts were split cannot be copied there.
- A text, a document's metadata as JSON, and an id have at most 65,535 bytes each.
"""
