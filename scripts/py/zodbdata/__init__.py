"""Databases for tests and demonstrations, written by the real ZODB.

    classes    stand-ins for the classes of Zope and Plone, and odd ones
    log        a FileStorage whose transactions have fixed tids
    content    made-up documents
    profiles   what each database contains
    blobs      databases with blobs
    edges      a RelStorage with what a FileStorage cannot have
    relational a RelStorage whose transactions have the same tids
    fixtures   the databases of testdata/relstorage
    dump       what the real FileStorage reads in a file, as JSON lines
"""
