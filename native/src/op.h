/* What a request asks for, to Python, to C and in accounts alike. */
#ifndef BLOCKD_OP_H
#define BLOCKD_OP_H

enum bd_op {
    BD_OP_READ = 0,
    BD_OP_WRITE = 1,
    BD_OP_FLUSH = 2,
    BD_OP_UNMAP = 3,
    BD_OP_WRITE_ZEROES = 4,
    BD_OP_CACHE = 5,
    BD_OP_BLOCK_STATUS = 6,
    BD_OP_OTHER = 7, /* of accounts only: what reaches no device */
    BD_OPS = 8,
};

#endif
