import sys

from align_keras.cli import main

sys.exit(main())
