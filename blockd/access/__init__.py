"""Who may attach which volume: one list for each volume, which holds over NBD and over iSCSI.

    networks    addresses of clients, and the networks that lists have
    rules       conditions, and what the rules of a volume grant to a client
    kept        a list as it is kept in meta/
    book        the lists of all volumes: looked at by the front ends, changed by the control API

Front ends ask the book when a client names a volume, and are told when a list has changed.
"""
