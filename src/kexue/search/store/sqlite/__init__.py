"""A store in one SQLite file, with a search engine in memory that follows the file.

`store` holds the store itself, `transactions` its transactions on the file, `database` the making and opening of the
file, `errors` what SQLite raises, `tables` rows and their checksums, `wal` the write-ahead log, `following` the search
engine, `matching` filters, and `checking` the search for damage.
"""
