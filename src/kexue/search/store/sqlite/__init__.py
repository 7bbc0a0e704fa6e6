"""A store in one SQLite file, with a search engine in memory that follows the file.

`store` holds the store itself, `database` the file and its errors, `tables` rows and their checksums, `identity` the
write-ahead log, `checking` the search for damage.
"""
