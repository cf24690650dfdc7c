/* The NBD requests that the loop serves itself: READ, WRITE, FLUSH, TRIM, WRITE_ZEROES that are in
 * order. Everything else goes to the Python engine by mail: other commands and flags, what is to be
 * refused, what failed (the engine asks the device again, which says what is wrong), and reads
 * whose chunks have to be looked up. DISC and whatever is not a request end the loop's part.
 *
 * Replies are those that blockd/nbd/replies.py makes: it is the oracle of the tests. */
#ifndef BLOCKD_NBD_SERVE_H
#define BLOCKD_NBD_SERVE_H

#include "loop.h"

enum bd_nbd_replies { BD_NBD_SIMPLE, BD_NBD_STRUCTURED, BD_NBD_EXTENDED };

struct bd_nbd_terms {
    enum bd_nbd_replies replies;
    bool read_only;
    uint64_t size;          /* as the client knows it */
    uint32_t minimum_block; /* a power of two: offsets and lengths are multiples of it */
    uint32_t max_payload;   /* bytes of one READ or WRITE */
};

/* A client of the loop, not yet added. `fd` belongs to it on success. NULL when memory runs out. */
struct bd_client *bd_nbd_client_new(struct bd_volume *volume, int fd,
                                    const struct bd_nbd_terms *terms, const uint8_t *input,
                                    size_t input_length);

#endif
